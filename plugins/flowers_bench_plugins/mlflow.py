"""MLflow follows the trials: `flowers-bench --plugin ... --track mlflow`, then `mlflow ui --backend-store-uri runs/mlruns`.

A trial is a run of the experiment `flowers-bench NAME-OF-THE-DATASET`, on the server that the environment variable
`MLFLOW_TRACKING_URI` names, or else in files in the run store. Its parameters are `config.json`, flat; its metrics the
numbers of `history.jsonl` (`epoch.NAME`, by epoch) and `result.json`. A continued trial continues its run. A server that
does not answer within seconds is reported once, and the trial goes on without it. Needs the extra `mlflow`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench import StoredRecord, flatten, hookimpl, metrics_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

FLOWERS_BENCH_TRACKER = "mlflow"
#: The tag by which a trial's run is found.
TAG = "flowers_bench.trial"
#: What every MLflow server takes: characters of a parameter; metrics, and parameters, in one request.
LONGEST, BATCH, PARAMETERS = 500, 1000, 100
#: MLflow would wait for two minutes, and try seven times again. These variables are not changed where they are set.
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


def _client(store: str) -> MlflowClient:
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        # MLflow prefers a database; but files need no further package, and are copied with the run store.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = (Path(store) / "mlruns").as_uri()
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another trial has just created it
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _run_of(client: MlflowClient, trial_id: str, dataset: str) -> str | None:
    experiment = client.get_experiment_by_name(_name(dataset))
    found = client.search_runs([experiment.experiment_id], f"tags.`{TAG}` = '{trial_id}'") if experiment else []
    return str(found[0].info.run_id) if found else None


def _name(dataset: str) -> str:
    return f"flowers-bench {dataset}"


def _log(client: MlflowClient, run_id: str, values: Mapping[str, float], step: int) -> None:
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, step) for name, value in values.items()]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])


# Hooks get plain JSON values: see flowers_bench.hookspecs.
@hookimpl
def trial_started(trial: StoredRecord, run: StoredRecord) -> None:
    from mlflow.entities import Param

    client = _client(run["store"])
    found = _run_of(client, trial["id"], trial["dataset"]["name"])
    if found is not None:
        client.update_run(found, "RUNNING")
        return
    label = f"{trial['technique']}/{trial['variant']} seed {trial['seed']}"
    run_id = client.create_run(
        _experiment(client, _name(trial["dataset"]["name"])), run_name=label, tags={TAG: trial["id"]}
    ).info.run_id
    values = flatten({k: v for k, v in trial.items() if k != "id"}).items()
    params = [Param(key, str(value)[:LONGEST]) for key, value in values]
    for start in range(0, len(params), PARAMETERS):
        client.log_batch(run_id, params=params[start : start + PARAMETERS])


@hookimpl
def epoch_finished(trial: StoredRecord, run: StoredRecord, epoch: StoredRecord) -> None:
    client = _client(run["store"])
    run_id = _run_of(client, trial["id"], trial["dataset"]["name"])
    if run_id is not None:
        values = {f"epoch.{key}": value for key, value in metrics_of(epoch).items() if key != "epoch"}
        _log(client, run_id, values, epoch["epoch"])


@hookimpl
def trial_finished(trial: StoredRecord, run: StoredRecord, result: StoredRecord) -> None:
    client = _client(run["store"])
    run_id = _run_of(client, trial["id"], trial["dataset"]["name"])
    if run_id is not None:
        _log(client, run_id, metrics_of({key: result[key] for key in ("val", "test", "cost")}), result["best_epoch"])
        client.set_terminated(run_id)
