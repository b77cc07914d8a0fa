const { execFileSync } = require('child_process');
const { GITHUB_WORKSPACE, GITHUB_SERVER_URL, GITHUB_REPOSITORY, GITHUB_SHA, INPUT_TOKEN } = process.env;
const git = (...words) => execFileSync('git', words, { cwd: GITHUB_WORKSPACE, stdio: 'inherit' });
const login = Buffer.from(`x-access-token:${INPUT_TOKEN}`).toString('base64');

git('init', '--quiet', '--initial-branch', 'main', '.');
git('remote', 'add', 'origin', `${GITHUB_SERVER_URL}/${GITHUB_REPOSITORY}`);
git('config', '--local', `http.${GITHUB_SERVER_URL}/.extraheader`, `Authorization: basic ${login}`);
git('fetch', '--quiet', '--depth', '1', 'origin', GITHUB_SHA);
git('-c', 'advice.detachedHead=false', 'checkout', '--quiet', 'FETCH_HEAD');
