"""Erlang-C with any real number of servers, and what follows from it.

Load ``a`` is arrival rate times mean service time (in erlangs); the queue is first come, first
served. Plain floats in and out. Good to about nine digits up to 100,000 servers.
"""

from __future__ import annotations

from math import exp, lgamma, log

_LONGEST = 1_000_000  # terms of the series; about sqrt(74 * servers) are needed


def erlang_b(servers: float, load: float) -> float:
    """Share of arrivals lost where nobody may wait. Needs ``0 <= load <= servers``.

    1/B = e^a a^-c Gamma(c+1, a), by the series of the lower incomplete gamma function, which
    converges quickly for a <= c, and without cancellation: the upper part is about half or more.
    """
    _check(servers, load)
    if load == 0:
        return 0.0 if servers > 0 else 1.0
    if load > servers:
        raise ValueError(f"a load of {load:g} is above {servers:g} servers: not computed")
    whole = load - servers * log(load) + lgamma(servers + 1)
    if whole > 700:  # e^700 is near the largest float: nobody is lost
        return 0.0
    term = total = load / (servers + 1)
    for n in range(2, _LONGEST):
        term *= load / (servers + n)
        total += term
        if term < total * 1e-16:
            break
    return 1 / (exp(whole) - total)


def erlang_c(servers: float, load: float) -> float:
    """Share of arrivals that wait. 1 where the load is not below the servers."""
    _check(servers, load)
    if load >= servers:
        return 1.0
    lost = erlang_b(servers, load)
    return servers * lost / (servers - load * (1 - lost))


def late_share(
    servers: float, load: float, service_s: float, wait_s: float, peakedness: float = 1.0
) -> float:
    """Share of waits above ``wait_s``.

    ``peakedness`` z above 1 is for arrivals burstier than Poisson: Hayward's approximation looks at
    c/z servers under a load of a/z.
    """
    if load >= servers:
        return 1.0
    waiting = erlang_c(servers / peakedness, load / peakedness)
    return waiting * exp(-(servers - load) * wait_s / (service_s * peakedness))


def replicas_needed(
    load: float,
    service_s: float,
    wait_s: float,
    late: float,
    *,
    peakedness: float = 1.0,
    slots: int = 1,
) -> int:
    """The fewest replicas of ``slots`` servers with at most a share ``late`` of waits longer."""
    if load <= 0:
        return 0

    def enough(replicas: int) -> bool:
        return late_share(replicas * slots, load, service_s, wait_s, peakedness) <= late

    low = int(load / slots)  # never enough
    step = 1
    while not enough(low + step):
        low, step = low + step, step * 2
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _check(servers: float, load: float) -> None:
    if servers < 0 or load < 0:
        raise ValueError(f"servers and load are not negative; got {servers:g} and {load:g}")
