// Both protocols by hand, as little of them as one small file needs.
const fs = require("fs");
const { INPUT_DO, INPUT_VERSION, INPUT_NAME, INPUT_PATH, ACTIONS_RUNTIME_URL, ACTIONS_RESULTS_URL, ACTIONS_RUNTIME_TOKEN, GITHUB_RUN_ID } = process.env;
const authorization = { authorization: `Bearer ${ACTIONS_RUNTIME_TOKEN}` };

async function ask(method, url, body, headers = {}) {
  const answer = await fetch(url, { method, body, headers });
  if (!answer.ok) throw new Error(`${method} ${new URL(url).pathname}: ${answer.status} ${await answer.text()}`);
  return answer;
}

const listed = `${ACTIONS_RUNTIME_URL}_apis/pipelines/workflows/${GITHUB_RUN_ID}/artifacts?api-version=6.0-preview`;
const json = { ...authorization, "content-type": "application/json", accept: "application/json;api-version=6.0-preview" };
const v3 = {
  async upload(content) {
    const body = JSON.stringify({ Type: "actions_storage", Name: INPUT_NAME });
    const made = await (await ask("POST", listed, body, json)).json();
    const range = `bytes 0-${content.length - 1}/${content.length}`;
    const headers = { ...authorization, "content-type": "application/octet-stream", "content-range": range, "x-actions-results-md5": md5(content) };
    await ask("PUT", `${made.fileContainerResourceUrl}?itemPath=${encodeURIComponent(`${INPUT_NAME}/file`)}`, content, headers);
    await ask("PATCH", `${listed}&artifactName=${encodeURIComponent(INPUT_NAME)}`, JSON.stringify({ Size: content.length }), json);
  },
  async download() {
    const all = await (await ask("GET", listed, undefined, json)).json();
    const found = all.value.find((each) => each.name === INPUT_NAME);
    const items = await (await ask("GET", `${found.fileContainerResourceUrl}?itemPath=${encodeURIComponent(INPUT_NAME)}`, undefined, json)).json();
    return Buffer.from(await (await ask("GET", items.value.find((item) => item.itemType === "file").contentLocation, undefined, authorization)).arrayBuffer());
  },
};

async function twirp(method, body) {
  const url = `${ACTIONS_RESULTS_URL}/twirp/github.actions.results.api.v1.ArtifactService/${method}`;
  return (await ask("POST", url, JSON.stringify({ ...ids(), ...body }), json)).json();
}
function ids() {
  const claims = JSON.parse(Buffer.from(ACTIONS_RUNTIME_TOKEN.split(".")[1], "base64url"));
  const [, run, job] = claims.scp.split(" ").find((scope) => scope.startsWith("Actions.Results:")).split(":");
  return { workflow_run_backend_id: run, workflow_job_run_backend_id: job };
}
const v4 = {
  async upload(content) {
    const made = await twirp("CreateArtifact", { name: INPUT_NAME, version: 4 });
    await ask("PUT", `${made.signedUploadUrl}&comp=block`, content);
    await twirp("FinalizeArtifact", { name: INPUT_NAME, size: String(content.length), hash: `sha256:${sha256(content)}` });
  },
  async download() {
    const all = await twirp("ListArtifacts", {});
    if (!all.artifacts.some((each) => each.name === INPUT_NAME)) throw new Error("not listed");
    const { signedUrl } = await twirp("GetSignedArtifactURL", { name: INPUT_NAME });
    return Buffer.from(await (await ask("GET", signedUrl)).arrayBuffer());
  },
};

const digest = (kind, form) => (content) => require("crypto").createHash(kind).update(content).digest(form);
const md5 = digest("md5", "base64"), sha256 = digest("sha256", "hex");

(async () => {
  const protocol = INPUT_VERSION === "3" ? v3 : v4;
  if (INPUT_DO === "upload") await protocol.upload(fs.readFileSync(INPUT_PATH));
  else fs.writeFileSync(INPUT_PATH, await protocol.download());
  console.log(`${INPUT_DO} of ${fs.statSync(INPUT_PATH).size} bytes is done`);
})().catch((error) => {
  console.log(`failed: ${error.message}`);
  process.exitCode = 1;
});
