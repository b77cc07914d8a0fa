const fs = require("fs");
const add = (file, text) => fs.appendFileSync(process.env[file], text + "\n");
const text = process.env.INPUT_TEXT;
console.log(`main: ${text}`);
console.log(`in the workspace: ${process.cwd() === process.env.GITHUB_WORKSPACE}`);
add("GITHUB_OUTPUT", `upper<<END\n${text.toUpperCase()}\nEND`);
add("GITHUB_STATE", `kept=${text}`);
add("GITHUB_ENV", `BY_JAVASCRIPT=${text}`);
process.exitCode = Number(process.env.INPUT_FAIL);
