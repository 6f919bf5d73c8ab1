"""A run of MLflow: in the folder of the run, or on the server that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import Any

from plsc.engine.observers.loggers.base import Logger, Opening
from plsc.engine.observers.measures import Histogram

_EXPERIMENT = "plsc"
_LONGEST = 500  # characters of a parameter


class MLflow(Logger):
    """Metrics, and settings as parameters; MLflow has no histograms.

    The client is used, without the functions that add the command line and the address of the repository. A resumed run
    goes on with the same run of MLflow, which keeps what it has of steps that are trained again.
    """

    name, package = "mlflow", "mlflow"

    def open(self, opening: Opening) -> str:
        location = os.environ.get("MLFLOW_TRACKING_URI")
        if not location:
            # MLflow 3 takes a folder only where this is set; its database needs packages of its full distribution.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            location = opening.folder.resolve().as_uri()
        self._client: Any = self.module.MlflowClient(tracking_uri=location)
        self._entities: Any = self.module.entities
        if opening.is_resumed:
            self._client.update_run(opening.id, status="RUNNING")
            self._run_id = opening.id
            return self._run_id
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        found = self._client.get_experiment_by_name(experiment)
        number = self._client.create_experiment(experiment) if found is None else found.experiment_id
        self._run_id = str(self._client.create_run(number, run_name=opening.name).info.run_id)
        parameters = [self._entities.Param(name, str(value)[:_LONGEST]) for name, value in opening.settings.items()]
        for start in range(0, len(parameters), 100):  # as many as a server takes at once
            self._client.log_batch(self._run_id, params=parameters[start : start + 100])
        return self._run_id

    def write(self, step: int, scalars: Mapping[str, float], histograms: Mapping[str, Histogram]) -> None:
        now = int(1000 * time.time())
        metrics = [
            self._entities.Metric(re.sub(r"[^\w .:/-]", "_", name), value, now, step) for name, value in scalars.items()
        ]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, is_complete: bool) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if is_complete else "FAILED")
