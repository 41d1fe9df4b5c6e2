#!/bin/bash
# From a folder of photographs (a folder for each class) to an answer, and to names for new photographs:
#   examples/own_folder.sh ../my/photos ../my/new
# What is in new.csv: each new photograph, its most probable class, and how probable that is.
set -euo pipefail
photos=$1 new=$2 runs=${FLOWERS_RUNS:-runs}

flowers-bench start "$photos" --yes --store "$runs" --seeds "${SEEDS:-3}"

# The trial to use is in the answer: the cheapest technique of those that cannot be told apart from the best, else the best.
chosen=$(flowers-bench answer --store "$runs" --format json | python3 -c '
import json, sys
first = json.load(sys.stdin)[0]
print((first["cheapest"] or first["best"])["trial"])')

flowers-bench predict "$chosen" "$new" --store "$runs" --format json | python3 -c '
import csv, json, sys
table = csv.writer(sys.stdout)
table.writerow(("photograph", "class", "probability"))
for one in json.load(sys.stdin):
    best = one["predictions"][0]
    table.writerow((one["image"], best["class"], round(best["probability"], 4)))' > new.csv
echo "trial $chosen named $(($(wc -l < new.csv) - 1)) photographs: new.csv"
