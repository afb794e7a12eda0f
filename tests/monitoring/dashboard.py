"""What run.sh asks of a dashboard and of a running Prometheus.

    rules FILE            every expression of the dashboard as a rules file
    get URL               a page
    quiet URL ALERT...    fails if one of the alerts is pending or fires
    fires URL ALERT       fails unless the alert fires
    data URL FILE         fails if an expression of the dashboard returns no data
"""

import json
import sys
import urllib.parse
import urllib.request


def get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def expressions(dashboard):
    """Title and expression of every query of every panel and annotation."""
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def plain(expression):
    """With Grafana's variables replaced."""
    variables = {"$__rate_interval": "1m", "$__interval": "15s", "$__range": "5m", "$job": ".*", "$instance": ".*"}
    for name, value in variables.items():
        expression = expression.replace(name, value)
    if "$" in expression:
        sys.exit(f"an unknown variable in {expression}")
    return expression


def alerts(url):
    return {(a["labels"]["alertname"], a["state"]) for a in json.loads(get(url + "/api/v1/alerts"))["data"]["alerts"]}


def main():
    what, *rest = sys.argv[1:]
    if what == "get":
        print(get(rest[0]), end="")
    elif what == "rules":
        rules = [
            {"record": f"dashboard:{number}", "expr": plain(expression)}
            for number, (_, expression) in enumerate(expressions(json.load(open(rest[0]))))
        ]
        # JSON is YAML.
        json.dump({"groups": [{"name": "dashboard", "rules": rules}]}, sys.stdout)
    elif what == "quiet":
        now = alerts(rest[0])
        loud = [alert for alert in now if alert[0] in rest[1:]]
        if loud:
            sys.exit(f"not quiet: {loud}")
        print("quiet:", ", ".join(rest[1:]), "(all alerts:", sorted(now) or "none", ")")
    elif what == "fires":
        if (rest[1], "firing") not in alerts(rest[0]):
            sys.exit(f"{rest[1]} does not fire: {alerts(rest[0])}")
        print("fires:", rest[1])
    elif what == "data":
        empty, count = [], 0
        for title, expression in expressions(json.load(open(rest[1]))):
            query = urllib.parse.urlencode({"query": plain(expression)})
            result = json.loads(get(f"{rest[0]}/api/v1/query?{query}"))["data"]["result"]
            numbers = [sample for sample in result if sample["value"][1] != "NaN"]
            count += 1
            if not numbers:
                empty.append(f"{title}: {expression}")
        if empty:
            sys.exit("no data:\n" + "\n".join(empty))
        print(f"dashboard: {count} expressions return data")


main()
