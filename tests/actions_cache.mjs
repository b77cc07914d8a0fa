// What a job does with @actions/cache: node actions_cache.mjs FOLDER save|restore KEY PATH [RESTORE-KEY…]
// Prints one line of JSON: what the library gave back, or the error that it threw.
import { pathToFileURL } from "node:url";

const [folder, what, key, path, ...more] = process.argv.slice(2);
const cache = await import(pathToFileURL(folder + "/node_modules/@actions/cache/lib/cache.js"));
const options = { uploadChunkSize: 1024 * 1024, uploadConcurrency: 4 };
const said = process.stdout.write;
process.stdout.write = (text, ...rest) => process.stderr.write(text, ...rest);
let answer;
try {
  answer = { result: (what === "save" ? await cache.saveCache([path], key, options) : await cache.restoreCache([path], key, more)) ?? null };
} catch (error) {
  answer = { error: String(error) };
}
said.call(process.stdout, JSON.stringify(answer) + "\n", () => process.exit(0));
