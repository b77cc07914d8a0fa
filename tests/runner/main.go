// Takes the place of forgejo-runner and gitea-runner in the test images: the real RPC in JSON, `run:` steps only.
//
// A job whose label has a place like docker://IMAGE has its steps in a container of that image, which the machine's Docker runs.
//
//	forgejo-runner one-job --url U --uuid X --token-url file:PATH --label NAME:PLACE --handle H [--wait]
//	gitea-runner daemon --once          (with a .runner file in the current folder)
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

// fetch polls for a task: this very job on Forgejo, any fitting one on Gitea.
func (r *rpc) fetch(handle string, single, wait bool) object {
	for {
		method, body := "FetchTask", object{"tasksVersion": "0"}
		if single {
			method, body = "FetchSingleTask", object{"handle": handle}
		}
		if task, ok := r.patiently(method, body)["task"].(object); ok && task != nil {
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
		Env    map[string]any `yaml:"env"`
		RunsOn any            `yaml:"runs-on"`
		Steps  []step         `yaml:"steps"`
	} `yaml:"jobs"`
}

func verdict(passed bool) string {
	if passed {
		return "RESULT_SUCCESS"
	}
	return "RESULT_FAILURE"
}

// run runs the one job of the payload and reports each step.
func run(r *rpc, task object, places labels) {
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
		image, inside := strings.CutPrefix(places.place(job.RunsOn), "docker://")
		if inside {
			passed = contain(image, log)
		}
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
			passed = execute(shell(script, mine, inside), log)
			state["result"], state["stoppedAt"], state["logLength"] = verdict(passed), now(), strconv.Itoa(log.index-first)
		}
	}
	log.send(true, map[bool]string{true: "job passed", false: "job failed"}[passed])
	report(object{"result": verdict(passed), "stoppedAt": now()})
	beside.Wait()
}

// The job's container, and its folder there. Whatever the image starts by itself, here it waits for steps.
const container, workspace = "job", "/workspace"

// contain starts it, with Docker's words in the log.
func contain(image string, log *taskLog) bool {
	if err := os.MkdirAll(workspace, 0o755); err != nil {
		fail("the workspace: %v", err)
	}
	options := []string{"run", "--detach", "--name", container, "--volume", workspace + ":" + workspace, "--workdir", workspace}
	return execute(exec.Command("docker", append(options, "--entrypoint", "tail", image, "-f", "/dev/null")...), log)
}

// shell is the command of one step: in the machine, or in the job's container.
func shell(script string, environment []string, inside bool) *exec.Cmd {
	if !inside {
		work := exec.Command("bash", "-e", "-c", script)
		work.Env = environment
		return work
	}
	words := []string{"exec"}
	for _, each := range environment {
		if !strings.HasPrefix(each, "PATH=") && !strings.HasPrefix(each, "HOME=") { // the container has its own
			words = append(words, "--env", each)
		}
	}
	return exec.Command("docker", append(words, container, "sh", "-e", "-c", script)...)
}

func execute(work *exec.Cmd, log *taskLog) bool {
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

// place is where the first of a job's labels says.
func (l labels) place(runsOn any) string {
	switch found := runsOn.(type) {
	case string:
		return l[found]
	case []any:
		if len(found) > 0 {
			return l[fmt.Sprint(found[0])]
		}
	}
	return ""
}

func main() {
	if len(os.Args) < 2 {
		fail("one-job or daemon?")
	}
	r := &rpc{client: &http.Client{Timeout: 30 * time.Second}}
	places := labels{}
	handle, single, wait := "", true, true
	switch flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError); os.Args[1] {
	case "one-job":
		flags.StringVar(&r.url, "url", "", "")
		flags.StringVar(&r.uuid, "uuid", "", "")
		tokenURL := flags.String("token-url", "", "")
		flags.StringVar(&handle, "handle", "", "")
		flags.BoolVar(&wait, "wait", false, "")
		flags.Var(places, "label", "")
		_ = flags.Parse(os.Args[2:])
		if handle == "" {
			fail("an empty handle would take any job")
		}
		raw, err := os.ReadFile(strings.TrimPrefix(*tokenURL, "file:"))
		if err != nil {
			fail("the token: %v", err)
		}
		r.token = string(raw) // as it is: a newline would break the header, as it does for the real one
	case "daemon":
		once := flags.Bool("once", false, "")
		_ = flags.Parse(os.Args[2:])
		raw, err := os.ReadFile(".runner")
		var known struct {
			Address, UUID, Token string
			Labels               []string
			Ephemeral            bool
		}
		if err == nil {
			err = json.Unmarshal(raw, &known)
		}
		if err != nil || !*once || !known.Ephemeral {
			fail("daemon needs --once and an ephemeral .runner (%v)", err)
		}
		r.url, r.uuid, r.token, single = known.Address, known.UUID, known.Token, false
		for _, label := range known.Labels {
			if err := places.Set(label); err != nil {
				fail("%v", err)
			}
		}
	default:
		fail("one-job or daemon, not %s", os.Args[1])
	}
	names := []string{}
	for name := range places {
		names = append(names, name)
	}
	r.patiently("Declare", object{"version": "v0.0.0-test", "labels": names})
	task := r.fetch(handle, single, wait)
	if task == nil {
		os.Exit(2)
	}
	run(r, task, places)
}
