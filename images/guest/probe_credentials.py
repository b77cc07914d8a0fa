"""Runs inside a machine and uses a runner's credentials in every way that there is. Stands alone,
with Python's own library.

Its argument is a JSON object with url, uuid, token, label, ca (PEM) and hosts (lines for
/etc/hosts); it prints an object of booleans: which calls the forge has answered.
"""

import json
import ssl
import sys
import urllib.error
import urllib.request

RPC = "/api/actions/runner.v1.RunnerService/"
PATIENCE = 30  # seconds


def main() -> None:
    """The command line."""
    told = json.loads(sys.argv[1])
    with open("/etc/hosts", "a") as file:
        file.writelines(f"{line}\n" for line in told["hosts"])
    trust = (
        ssl.create_default_context(cadata=told["ca"] or None)
        if told["url"].startswith("https")
        else None
    )

    def answers(path: str, headers: "dict[str, str]", body: "object | None" = None) -> bool:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 — the configuration's own address
            told["url"] + path, content, {"Content-Type": "application/json"} | headers
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE, context=trust) as answer:  # noqa: S310 — the same address
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return False

    runner = {"x-runner-uuid": told["uuid"], "x-runner-token": told["token"]}
    labels = [told["label"]]
    print(
        json.dumps(
            {
                "declare": answers(f"{RPC}Declare", runner, {"version": "probe", "labels": labels}),
                "fetch": answers(f"{RPC}FetchTask", runner, {}),
                "single": answers(f"{RPC}FetchSingleTask", runner, {"handle": ""}),
                "register": answers(
                    f"{RPC}Register",
                    {},
                    {"name": "probe", "token": told["token"], "labels": labels, "ephemeral": True},
                ),
                "api": answers("/api/v1/user", {"Authorization": f"token {told['token']}"}),
            }
        )
    )


if __name__ == "__main__":
    main()
