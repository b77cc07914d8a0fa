// What setup-node, setup-go and setup-python do: node tool.cjs NAME VERSION URL prints the tool's folder, which was there or has been fetched.
const tools = require("./tool-cache.js");

const [name, version, url] = process.argv.slice(2);
const said = process.stdout.write;
process.stdout.write = (text, ...rest) => process.stderr.write(text, ...rest);
process.env.RUNNER_TEMP ||= "/tmp";

(async () => {
  let folder = tools.find(name, version);
  if (!folder) {
    const archive = await tools.downloadTool(url);
    const unpacked = await tools.extractTar(archive, undefined, ["xz", "--strip", "1"]);
    folder = await tools.cacheDir(unpacked, name, version);
  }
  said.call(process.stdout, folder + "\n");
})();
