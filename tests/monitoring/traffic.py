"""Sends the demo's test images through the firewall: traffic.py URL FILE SECONDS, where FILE holds records of a
label and 28x28 bytes. Prints how many rows were sent and how many requests were turned away."""

import gzip
import http.client
import json
import sys
import time
import urllib.parse

url, file, seconds = urllib.parse.urlparse(sys.argv[1]), sys.argv[2], float(sys.argv[3])
records = gzip.open(file).read()
size = 1 + 28 * 28
images = [records[start + 1 : start + size] for start in range(0, len(records), size)]
connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
end = time.monotonic() + seconds
sent = turned_away = 0
while time.monotonic() < end:
    data = [byte / 255 for byte in images[sent % len(images)]]
    tensor = {"name": "input", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": data}
    connection.request("POST", url.path, json.dumps({"inputs": [tensor]}), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    sent += 1
    if answer.status == 403:
        turned_away += 1
    elif answer.status != 200:
        sys.exit(f"status {answer.status}")
    time.sleep(0.01)
print(f"{sent} rows, {turned_away} turned away")
