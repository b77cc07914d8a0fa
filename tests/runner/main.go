// Stands in for forgejo-runner, which no registry of packages has: the real RPC in JSON, `run:` steps only.
//
//	forgejo-runner one-job --config FILE --url U --uuid X --token-url file:PATH --label NAME:PLACE --handle H [--wait]
//
// Exit codes are forgejo-runner's: 0 a task ran, passed or failed; 1 start-up error; 2 no task.
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"gopkg.in/yaml.v3"
)

const service = "/api/actions/runner.v1.RunnerService/"

type object = map[string]any

func now() string { return time.Now().UTC().Format("2006-01-02T15:04:05.000000Z") }

func fail(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", arguments...)
	os.Exit(1)
}

type rpc struct {
	url, uuid, token string
	client           *http.Client
}

// call returns the answer, or the status and the text of a refusal.
func (r *rpc) call(method string, body any) (answer object, status int, said string, err error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, 0, "", err
	}
	request, err := http.NewRequest(http.MethodPost, r.url+service+method, bytes.NewReader(raw))
	if err != nil {
		return nil, 0, "", err
	}
	request.Header.Set("x-runner-uuid", r.uuid)
	request.Header.Set("x-runner-token", r.token)
	request.Header.Set("Content-Type", "application/json")
	response, err := r.client.Do(request)
	if err != nil {
		return nil, 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return nil, response.StatusCode, string(text), err
	}
	return answer, response.StatusCode, "", json.Unmarshal(text, &answer)
}

// patiently asks again and again while the network is down or the server ill; a refusal of the credentials ends it.
func (r *rpc) patiently(method string, body any) object {
	for {
		answer, status, said, err := r.call(method, body)
		if err == nil && status == http.StatusOK {
			if answer == nil {
				answer = object{}
			}
			return answer
		}
		if status == http.StatusUnauthorized || strings.Contains(said, "unregistered runner") {
			fail("refused: %s", said)
		}
		fmt.Fprintf(os.Stderr, "%s: %d %s %v\n", method, status, said, err)
		time.Sleep(time.Second)
	}
}

// fetch polls for this very job.
func (r *rpc) fetch(handle string, wait bool) object {
	for {
		if task, ok := r.patiently("FetchSingleTask", object{"handle": handle})["task"].(object); ok && task != nil {
			return task
		}
		if !wait {
			return nil
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// taskLog is sent line by line in order.
type taskLog struct {
	rpc   *rpc
	task  any
	index int
}

func (l *taskLog) send(last bool, lines ...string) {
	rows := []object{}
	for _, line := range lines {
		rows = append(rows, object{"time": now(), "content": line})
	}
	l.rpc.patiently("UpdateLog", object{"taskId": l.task, "index": strconv.Itoa(l.index), "rows": rows, "noMore": last})
	l.index += len(rows)
}

type step struct {
	Run string         `yaml:"run"`
	Env map[string]any `yaml:"env"`
}

type workflow struct {
	Env  map[string]any `yaml:"env"`
	Jobs map[string]struct {
		Env   map[string]any `yaml:"env"`
		Steps []step         `yaml:"steps"`
	} `yaml:"jobs"`
}

func verdict(passed bool) string {
	if passed {
		return "RESULT_SUCCESS"
	}
	return "RESULT_FAILURE"
}

// run runs the one job of the payload and reports each step.
func run(r *rpc, task object) {
	payload, err := base64.StdEncoding.DecodeString(task["workflowPayload"].(string))
	if err != nil {
		fail("the payload: %v", err)
	}
	var flow workflow
	if err := yaml.Unmarshal(payload, &flow); err != nil {
		fail("the workflow: %v", err)
	}
	environment := []string{"CI=true"}
	for _, name := range []string{"PATH", "HOME", "LANG"} {
		if value, ok := os.LookupEnv(name); ok {
			environment = append(environment, name+"="+value)
		}
	}
	context, _ := task["context"].(object)
	for variable, name := range map[string]string{"GITHUB_REPOSITORY": "repository", "GITHUB_SHA": "sha"} {
		value, _ := context[name].(string)
		environment = append(environment, variable+"="+value)
	}
	secrets, _ := task["secrets"].(object)
	for _, ours := range []string{"GITEA_TOKEN", "GITHUB_TOKEN", "FORGEJO_TOKEN"} {
		delete(secrets, ours)
	}
	log := &taskLog{rpc: r, task: task["id"]}
	steps, passed, began := []object{}, true, now()
	var beside sync.WaitGroup // steps don't wait for their report, as with the real runners
	report := func(state object) {
		state["id"], state["startedAt"], state["steps"] = task["id"], began, steps
		raw, err := json.Marshal(object{"state": state, "outputs": object{}})
		if err != nil {
			fail("the state: %v", err)
		}
		beside.Wait()
		beside.Add(1)
		go func() {
			defer beside.Done()
			r.patiently("UpdateTask", json.RawMessage(raw))
		}()
	}
	for _, job := range flow.Jobs {
		for number, step := range job.Steps {
			state := object{"id": strconv.Itoa(number), "startedAt": now(), "logIndex": strconv.Itoa(log.index)}
			steps = append(steps, state)
			if !passed {
				state["result"], state["stoppedAt"], state["logLength"] = "RESULT_SKIPPED", now(), "0"
				continue
			}
			report(object{})
			script := step.Run
			for name, value := range secrets {
				script = strings.ReplaceAll(script, "${{ secrets."+name+" }}", fmt.Sprint(value))
			}
			mine := environment[:len(environment):len(environment)]
			for _, more := range []map[string]any{flow.Env, job.Env, step.Env} {
				for name, value := range more {
					mine = append(mine, name+"="+fmt.Sprint(value))
				}
			}
			first := log.index
			passed = execute(script, mine, log)
			state["result"], state["stoppedAt"], state["logLength"] = verdict(passed), now(), strconv.Itoa(log.index-first)
		}
	}
	log.send(true, map[bool]string{true: "job passed", false: "job failed"}[passed])
	report(object{"result": verdict(passed), "stoppedAt": now()})
	beside.Wait()
}

func execute(script string, environment []string, log *taskLog) bool {
	work := exec.Command("bash", "-e", "-c", script)
	work.Env = environment
	read, write, err := os.Pipe()
	if err != nil {
		fail("a pipe: %v", err)
	}
	work.Stdout, work.Stderr = write, write
	if err := work.Start(); err != nil {
		fail("%s: %v", work.Path, err)
	}
	write.Close()
	lines := bufio.NewReader(read)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			log.send(false, strings.ToValidUTF8(strings.TrimSuffix(line, "\n"), "�"))
		}
		if err != nil {
			break
		}
	}
	return work.Wait() == nil
}

// labels are the places of what a job asks for: "host", or "docker://IMAGE".
type labels map[string]string

func (l labels) String() string { return fmt.Sprint(map[string]string(l)) }
func (l labels) Set(text string) error {
	name, place, found := strings.Cut(text, ":")
	if !found {
		return fmt.Errorf("the label %s has no place", text)
	}
	l[name] = place
	return nil
}

func main() {
	if len(os.Args) < 2 || os.Args[1] != "one-job" {
		fail("one-job?")
	}
	r := &rpc{client: &http.Client{Timeout: 30 * time.Second}}
	places := labels{}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.StringVar(&r.url, "url", "", "")
	flags.StringVar(&r.uuid, "uuid", "", "")
	config := flags.String("config", "", "")
	tokenURL := flags.String("token-url", "", "")
	handle := flags.String("handle", "", "")
	wait := flags.Bool("wait", false, "")
	flags.Var(places, "label", "")
	_ = flags.Parse(os.Args[2:])
	if *handle == "" {
		fail("an empty handle would take any job")
	}
	var settings object
	if raw, err := os.ReadFile(*config); err != nil {
		fail("the configuration: %v", err)
	} else if err := yaml.Unmarshal(raw, &settings); err != nil {
		fail("the configuration: %v", err)
	}
	raw, err := os.ReadFile(strings.TrimPrefix(*tokenURL, "file:"))
	if err != nil {
		fail("the token: %v", err)
	}
	r.token = string(raw) // as it is: a newline would break the header, as it does for the real one
	names := []string{}
	for name := range places {
		names = append(names, name)
	}
	r.patiently("Declare", object{"version": "v0.0.0-test", "labels": names})
	task := r.fetch(*handle, *wait)
	if task == nil {
		os.Exit(2)
	}
	run(r, task)
}
