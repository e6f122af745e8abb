"""The layouts of a plan's step over the machines of a cluster file."""

from pathlib import Path

from chinchilla.config.cluster import Cluster, read_cluster
from chinchilla.config.machine import Precision
from chinchilla.config.plan import Plan
from chinchilla.config.run import Run
from chinchilla.planning.layout import Layouts
from chinchilla.planning.layout import layouts as choose
from chinchilla.planning.network import Network
from chinchilla.planning.price import require_rate
from chinchilla.planning.search import Facts
from chinchilla.planning.work import step_work

SPREAD = 0.5
"""Relative spread of a time on machines that only the cluster file knows."""


def read(run: Run) -> Cluster | None:
    """The run's cluster; None for this machine alone. Every verb that plans reads it before the data.

    Raises:
        UsageError: the file is missing or wrong, or lacks a node's rate in the precision that the recipe fixes.
    """
    cluster = None if run.cluster.file is None else read_cluster(Path(run.cluster.file))
    if run.train.precision is not None:
        require_rates(cluster, run.train.precision)
    return cluster


def require_rates(cluster: Cluster | None, precision: Precision) -> None:
    """Refuse a cluster whose layouts could not be priced in a precision, before anything is probed.

    Raises:
        UsageError: a node's rate in it is not known.
    """
    for node in cluster.node if cluster is not None else ():
        require_rate(node, precision)


def layouts(made: Plan, facts: Facts, cluster: Cluster) -> Layouts:
    """Price the plan's step on the cluster.

    The share of the peak that this machine reaches, by the plan's step time, is taken to hold on every node.

    Raises:
        BudgetError: no layout fits the memory of its nodes.
        UsageError: a node's rate in the plan's precision is not known.
    """
    training = made.training
    batch = facts.batch(training.batch_tokens / training.accumulation)
    step_flops = made.tokens_per_step * made.flops_per_token
    peak = made.machine.flops_per_s(training.precision)
    efficiency = min(1.0, step_flops / (made.predicted["step_time_s"].p50 * peak))
    return choose(step_work(made.shape, batch, training, efficiency, "guess", SPREAD), Network(cluster))
