"""How the jobs of a sweep are run: on this machine, or by submitit on a cluster. What they find lies in their folders."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomaly_vlm.errors import UserError
from anomaly_vlm.options import check_arguments
from anomaly_vlm.reporting.console import say
from anomaly_vlm.runs.jobs import command, run_job
from anomaly_vlm.runs.stopping import requested
from anomaly_vlm.runs.submitted import SubmittedJob, end_processes
from anomaly_vlm.runs.sweeps import FAILED, Job, note_failure

PAUSE = 0.2  # seconds between two looks at the jobs
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
LOG = "job.log"  # what a job says that runs beside others


class LocalLauncher:
    """Jobs on this machine, one after another or side by side.

    Args:
        n_jobs: How many run at the same time; -1 for one a GPU, or one a core where there is no GPU.
        own_process: Whether a job that runs alone has a process of its own, so that its end costs no other one. Jobs side
            by side always have, as have those that start further processes.
    """

    def __init__(self, n_jobs: int = 1, own_process: bool = True) -> None:
        checked = check_arguments(LocalLauncher, {"n_jobs": n_jobs, "own_process": own_process}, owner="hydra.launcher")
        if n_jobs < 1 and n_jobs != -1:
            raise UserError(f"hydra.launcher.n_jobs is {n_jobs}: give a number of jobs, or -1 for one a GPU or core")
        self.n_jobs, self.own_process = checked["n_jobs"], checked["own_process"]

    def launch(self, jobs: Sequence[Job], root: Path) -> None:
        """See `sweeps.Launcher`."""
        gpus = visible_gpus() if any(job.cfg.trainer.accelerator != "cpu" for job in jobs) else []
        count = min(len(jobs), self.n_jobs if self.n_jobs > 0 else len(gpus) or os.cpu_count() or 1)
        if count > 1:
            self._side_by_side(list(jobs), [gpus[i % len(gpus)] if gpus else None for i in range(count)])
            return
        for job in jobs:
            say(f"job {job.number}: {job.label}")
            if self.own_process or _starts_processes(job):
                _ended(job, _wait(subprocess.Popen(_command(job))))
            else:
                run_job(job.cfg, job.folder)

    @staticmethod
    def _side_by_side(waiting: list[Job], free: list[str | None]) -> None:
        """Gives each job a free GPU (None without any) and its share of the cores."""
        threads, total = max(1, (os.cpu_count() or 1) // len(free)), len(waiting)
        running: dict[subprocess.Popen[bytes], tuple[Job, str | None]] = {}
        done = 0
        try:
            while waiting or running:
                while waiting and free:
                    job, gpu = waiting.pop(0), free.pop(0)
                    running[_start(job, gpu, threads)] = job, gpu
                    say(f"job {job.number}: {job.label} (log: {job.folder / LOG})")
                time.sleep(PAUSE)
                for process in [process for process in running if process.poll() is not None]:
                    job, gpu = running.pop(process)
                    free.append(gpu)
                    _ended(job, process.returncode)
                    done += 1
                    say(f"job {job.number}: {job.reason or 'finished'} ({done} of {total})")
        finally:
            end_processes(list(running))


class SubmititLauncher:
    """One submitit job a run: SLURM, or its local executor.

    Args:
        cluster: `slurm` or `local`.
        max_num_timeout: How often a job that ran out of time, or was preempted, resumes in a new one.
        parameters: Of submitit's executor; those of SLURM alone without their prefix `slurm_`.
    """

    SHARED = ("name", "nodes", "timeout_min", "cpus_per_task", "tasks_per_node", "gpus_per_node", "mem_gb")

    def __init__(self, cluster: str, max_num_timeout: int = 0, **parameters: Any) -> None:
        self.cluster, self.max_num_timeout, self.parameters = cluster, max_num_timeout, parameters

    def launch(self, jobs: Sequence[Job], root: Path) -> None:
        """See `sweeps.Launcher`."""
        try:
            import submitit
        except ImportError as error:
            raise UserError("hydra/launcher=submitit_... needs submitit: make setup EXTRAS=sweep") from error
        logs = root / ".submitit" / "%j"
        try:
            executor = submitit.AutoExecutor(logs, cluster=self.cluster, slurm_max_num_timeout=self.max_num_timeout)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"hydra.launcher.cluster={self.cluster}: {error}") from error
        keys = {key if key in self.SHARED else f"slurm_{key}": value for key, value in self.parameters.items()}
        try:
            executor.update_parameters(**{"name": f"anomaly_vlm_{root.name}", **keys})
        except (TypeError, NameError, NotImplementedError) as error:
            raise UserError(f"hydra.launcher: submitit does not take these keys: {error}") from error
        submitted = executor.map_array(SubmittedJob(), [_command(job) for job in jobs])
        for job, handle in zip(jobs, submitted, strict=True):
            say(f"job {job.number}: {job.label} (submitted as {handle.job_id})")
        try:
            while not all(handle.done() for handle in submitted):
                time.sleep(PAUSE)
        except BaseException:
            for handle in submitted:
                handle.cancel(check=False)
            raise
        for job, handle in zip(jobs, submitted, strict=True):
            failure = handle.exception()
            if failure is None:
                _ended(job, handle.result())
            elif not (job.folder / FAILED).is_file():
                note_failure(job.folder, f"submitit job {handle.job_id} ended as {handle.state}", str(failure))


def visible_gpus() -> list[str]:
    """The GPUs of this process, as `CUDA_VISIBLE_DEVICES` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _command(job: Job) -> list[str]:
    return command(job.folder, list(job.cfg.trust))


def _starts_processes(job: Job) -> bool:
    return str(job.cfg.trainer.get("strategy", "auto")) not in ("auto", "single_device")


def _start(job: Job, gpu: str | None, threads: int) -> subprocess.Popen[bytes]:
    """Starts a job beside others, with what it says in a file of its folder."""
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    with (job.folder / LOG).open("ab") as log:
        return subprocess.Popen(_command(job), env=environment, stdout=log, stderr=subprocess.STDOUT)


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait()
    finally:
        end_processes([process])


def _ended(job: Job, status: int) -> None:
    """Notes the failure of a job that could not do so itself; of one that was stopped there is none."""
    if status == 0 or status in STOPPED or (job.folder / FAILED).is_file() or requested():
        return
    if status < 0:
        name = signal.Signals(-status).name
        memory = ", as the system does when memory is short: lower batch_size, or n_jobs" if name == "SIGKILL" else ""
        note_failure(job.folder, f"its process was ended by {name}{memory}")
    else:
        note_failure(job.folder, f"its process ended with status {status}; what it said is above, or in {LOG}")
