// What a job does with @actions/tool-cache, as setup-go does: it looks for versions, and adds one that is missing. One line of JSON.
const fs = require("node:fs");
const tools = require("./node_modules/@actions/tool-cache/lib/tool-cache.js");

(async () => {
  const found = {
    exact: tools.find("go", "1.26.0"),
    range: tools.find("go", "^1.20"),
    node: tools.find("node", "22.x"),
    missing: tools.find("go", "1.27.0"),
  };
  fs.mkdirSync("fetched");
  fs.writeFileSync("fetched/VERSION", "1.27.0");
  found.added = await tools.cacheDir("fetched", "go", "1.27.0");
  found.then = tools.findAllVersions("go").sort();
  console.log(JSON.stringify(found));
})();
