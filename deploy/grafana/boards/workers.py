"""What each worker takes, does and gives, and what its replicas use."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from boards import panels
from boards.panels import (
    Panel,
    Query,
    gained,
    graph,
    mean,
    quantile,
    quantiles,
    rate,
    variable,
)

_CHOSEN = 'worker=~"$worker"'
# The replicas of a worker are the job of its name.
_JOBS = 'job=~"$worker"'


def board() -> Dashboard:
    return panels.board(
        "visionmesh-workers",
        "visionmesh workers",
        "Each worker: what goes in and out, how long it takes, what fails, and what its replicas use.",
        [
            ("In and out", _flow()),
            ("Time", _time()),
            ("Failures", _failures()),
            ("Replicas", _replicas()),
        ],
        variables=[variable("worker", "Worker", "mesh_partitions_assigned")],
    )


def _flow() -> list[Panel]:
    return [
        graph(
            "In",
            "Messages that were taken from a topic.",
            "mps",
            Query(
                rate("mesh_messages_consumed_total", _CHOSEN, by="worker, topic"), "{{worker}} · {{topic}}"
            ),
        ),
        graph(
            "Brought to an end",
            "Messages by worker and outcome: done, skipped or failed.",
            "mps",
            Query(
                rate("mesh_messages_finished_total", _CHOSEN, by="worker, outcome"), "{{worker}} {{outcome}}"
            ),
        ),
        graph(
            "Out",
            "Messages that came of others and were put on a topic, without dead letters.",
            "mps",
            Query(
                rate("mesh_messages_published_total", _CHOSEN, by="worker, topic"), "{{worker}} · {{topic}}"
            ),
        ),
        graph(
            "Lag",
            "Messages that the groups have not finished.",
            "short",
            Query('max by (group) (mesh_group_lag_messages{group=~"$worker"})', "{{group}}"),
        ),
        graph(
            "In flight",
            "Messages that were taken and not yet committed.",
            "short",
            Query(f"sum by (worker) (mesh_messages_in_flight{{{_CHOSEN}}})", "{{worker}}"),
        ),
        graph(
            "Batch size",
            "Messages that a step is handed at once, on average.",
            "short",
            Query(mean("mesh_batch_size", _CHOSEN, by="worker"), "{{worker}}"),
        ),
    ]


def _time() -> list[Panel]:
    return [
        graph(
            "Step",
            "Time in the step, per batch.",
            "s",
            *quantiles("mesh_step_seconds", _CHOSEN, by="worker"),
        ),
        graph(
            "Store",
            "Time to write a batch to Postgres.",
            "s",
            *quantiles("mesh_store_seconds", _CHOSEN, by="worker"),
        ),
        graph(
            "Publish",
            "Time until the broker has acknowledged a batch.",
            "s",
            *quantiles("mesh_publish_seconds", _CHOSEN, by="worker"),
        ),
        graph(
            "Age of messages",
            "Age of a batch's oldest message when its results were stored and published.",
            "s",
            *quantiles("mesh_message_age_seconds", _CHOSEN, by="worker"),
            width=12,
        ),
        graph(
            "Upload to result",
            "From the upload of a picture until the worker's result is stored.",
            "s",
            *quantiles("mesh_end_to_end_seconds", _CHOSEN, by="worker"),
            width=12,
        ),
    ]


def _failures() -> list[Panel]:
    return [
        graph(
            "Dead letters, 1 h",
            "Messages put on a dead-letter topic within the last hour, by reason.",
            "short",
            Query(gained("mesh_dead_letters_total", _CHOSEN, by="worker, code"), "{{worker}} {{code}}"),
        ),
        graph(
            "Retries",
            "Waits for a server that was away, by server.",
            "ops",
            Query(
                rate("mesh_retries_total", _CHOSEN, by="worker, server"),
                "{{worker}} {{server}}",
            ),
        ),
        graph(
            "Children replaced, 1 h",
            "Child processes that ended early within the last hour: a crash, a deadline, or too much memory.",
            "short",
            Query(gained("mesh_isolated_restarts_total", _JOBS, by="job, reason"), "{{job}} {{reason}}"),
        ),
        graph(
            "Checks",
            "What each check of /ready found: 1 is ready. The least of all replicas.",
            "short",
            Query(f"min by (job, check) (mesh_check_ready{{{_JOBS}}})", "{{job}} {{check}}"),
            at_most=1,
        ),
        graph(
            "Restarts, 1 h",
            "How often a replica began anew within the last hour.",
            "short",
            Query(f"sum by (job) (changes(process_start_time_seconds{{{_JOBS}}}[1h]))", "{{job}}"),
        ),
        graph(
            "Killed for memory, 1 h",
            "Processes of a container that the kernel killed within the last hour, for it held all it may.",
            "short",
            Query(gained("mesh_memory_kills_total", _JOBS, by="job"), "{{job}}"),
        ),
    ]


def _replicas() -> list[Panel]:
    return [
        graph(
            "Partitions",
            "Partitions that each replica owns; together 12, whatever their number.",
            "short",
            Query(
                f"sum by (worker, instance) (mesh_partitions_assigned{{{_CHOSEN}}})",
                "{{worker}} {{instance}}",
            ),
        ),
        graph(
            "Processor",
            "Cores that each replica uses, its children included.",
            "short",
            Query(rate("mesh_process_cpu_seconds_total", _JOBS, by="job, instance"), "{{job}} {{instance}}"),
        ),
        graph(
            "Processes",
            "A replica and its children, how many they are.",
            "short",
            Query(f"sum by (job, instance) (mesh_processes{{{_JOBS}}})", "{{job}} {{instance}}"),
        ),
        graph(
            "Memory",
            "What each replica holds, its children included.",
            "bytes",
            Query(f"sum by (job, instance) (mesh_process_resident_bytes{{{_JOBS}}})", "{{job}} {{instance}}"),
            width=12,
        ),
        graph(
            "Memory of the limit",
            "How much of what its container may hold is held and can't be given back. At 1 the kernel kills. "
            "None outside containers.",
            "percentunit",
            Query(
                f"max by (job, instance) (mesh_memory_used_bytes{{{_JOBS}}}"
                f" / mesh_memory_limit_bytes{{{_JOBS}}})",
                "{{job}} {{instance}}",
            ),
            width=12,
            at_most=1,
            bad_from=0.9,
        ),
        graph(
            "Step, slowest replica",
            "Time in the step, per batch; one in twenty takes longer. Of the slowest replica.",
            "s",
            Query(
                f"max by (worker) ({quantile(0.95, 'mesh_step_seconds', _CHOSEN, by='worker, instance')})",
                "{{worker}}",
            ),
            width=24,
        ),
    ]
