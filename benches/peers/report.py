"""What came out: medians, ratios, and their table, JSON and chart."""

import json
import os
import platform
import statistics
import time
from pathlib import Path

import chart


class Results:
    """The outcomes of all runs of all rounds."""

    def __init__(self, peers, workloads, rounds, seconds):
        self.peers = peers
        self.workloads = workloads
        self.rounds = rounds
        self.seconds = seconds
        self.versions = {peer.name: peer.version() for peer in peers}
        self._outcomes = {(peer.name, workload.name): [] for peer in peers for workload in workloads}

    def add(self, peer, workload, outcome):
        self._outcomes[peer.name, workload.name].append(outcome)

    def median(self, peer, workload, measure):
        """Of the runs that count; none if there are none or they do not have this measure."""
        values = [outcome[measure] for outcome in self._outcomes[peer.name, workload.name] if measure in outcome]
        return statistics.median(values) if values else None

    def voids(self):
        """A line for each run that does not count."""
        return [
            f"{name} on {workload}, {outcome['void']}"
            for (name, workload), outcomes in self._outcomes.items()
            for outcome in outcomes if "void" in outcome
        ]

    def ratios(self, workload):
        """Portcullis' headline divided by that of each other peer, and by the best other balancer's."""
        ours, *others = self.peers
        own = self.median(ours, workload, workload.headline)
        theirs = {peer.name: self.median(peer, workload, workload.headline) for peer in others}
        theirs = {name: value for name, value in theirs.items() if value}
        if own is None or not theirs:
            return {}
        ratios = {name: own / value for name, value in theirs.items()}
        foreign = [ratios[peer.name] for peer in others if peer.name in ratios and peer.kind != ours.kind]
        return {**ratios, **({"best": max(foreign)} if foreign else {})}

    def slope(self, peer, workload):
        """How much more a request costs than in the workload that this one is compared with."""
        base = next(other for other in self.workloads if other.name == workload.slope_of)
        more, less = (self.median(peer, one, one.headline) for one in [workload, base])
        return more / less if more and less else None

    def write(self, directory, command):
        """Writes all three forms; returns the table."""
        table = self._markdown(command)
        (directory / "results.md").write_text(table)
        (directory / "results.json").write_text(json.dumps(self._plain(command), indent=1) + "\n")
        (directory / "results.svg").write_text(chart.draw(self))
        return table

    def _plain(self, command):
        return {
            "command": command, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine(), "rounds": self.rounds, "seconds": self.seconds, "versions": self.versions,
            "workloads": {
                workload.name: {
                    "title": workload.title, "headline": workload.headline, "unit": workload.unit,
                    "ratios": self.ratios(workload),
                    "slopes": {peer.name: self.slope(peer, workload) for peer in self.peers}
                    if workload.slope_of else {},
                    "peers": {peer.name: self._outcomes[peer.name, workload.name] for peer in self.peers},
                } for workload in self.workloads
            },
        }

    def _markdown(self, command):
        loaded = [workload for workload in self.workloads if workload.generator]
        parts = [
            f"`{command}`\n\n{machine()}; {self.rounds} rounds of {self.seconds:g} s, medians; "
            f"{', '.join(self._negotiated())}.\n",
            *self._disturbed(),
            "Cost, with the ratio of Portcullis to the peer in brackets (below 1: Portcullis is cheaper):\n",
            self._table(self.workloads, self._cost, "to the best", self._to_best),
        ]
        slopes = [workload for workload in self.workloads if workload.slope_of]
        for title, rows, cell in [
            ("Growth, CPU a request against `h1-small` of the same peer:", slopes,
             lambda peer, workload: shown(self.slope(peer, workload), "{:.2f}")),
            ("Requests a second (how busy the balancer's core was):", loaded, self._throughput),
            ("Latency, p50 / p99 in ms:", loaded, self._latency),
            ("CPU a request, user + system in µs:", loaded, self._split),
            ("Highest resident memory, MiB:", [w for w in self.workloads if w.name != "cold-start"],
             lambda peer, workload: shown(self.median(peer, workload, "max_rss_mib"), "{:.0f}")),
        ]:
            if rows:
                parts += [title + "\n", self._table(rows, cell)]
        if voids := self.voids():
            parts += ["Runs that do not count:\n", "".join(f"- {line}\n" for line in voids)]
        return "\n".join(parts)

    def _table(self, rows, cell, last_title=None, last=None):
        heads = [f"{peer.name} {self.versions[peer.name]}" for peer in self.peers]
        lines = [["workload", *heads, *([last_title] if last else [])]]
        lines.append(["---"] + ["---:"] * (len(lines[0]) - 1))
        for workload in rows:
            cells = [cell(peer, workload) for peer in self.peers]
            lines.append([f"`{workload.name}`", *cells, *([last(workload)] if last else [])])
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def _cost(self, peer, workload):
        value = self.median(peer, workload, workload.headline)
        if value is None:
            return "void"
        ratio = self.ratios(workload).get(peer.name)
        return f"{quantity(value)} {workload.unit.split()[0]}" + (f" ({ratio:.2f})" if ratio else "")

    def _to_best(self, workload):
        return shown(self.ratios(workload).get("best"), "**{:.2f}**")

    def _throughput(self, peer, workload):
        rate = shown(self.median(peer, workload, "requests_per_second"), "{:,.0f}")
        return f"{rate} ({shown(self.median(peer, workload, 'core_busy'), '{:.0%}')})"

    def _latency(self, peer, workload):
        return " / ".join(shown(self.median(peer, workload, name), "{:.2f}") for name in ["p50_ms", "p99_ms"])

    def _split(self, peer, workload):
        return " + ".join(shown(self.median(peer, workload, name), "{:.1f}") for name in ["user_us", "system_us"])

    def _disturbed(self):
        """A warning when the balancer's core was not the balancer's alone."""
        taken = [outcome["core_taken_by_others"] for some in self._outcomes.values() for outcome in some
                 if "core_taken_by_others" in outcome]
        worst = max(taken, default=0)
        if worst < 0.05:
            return []
        return [f"**Not a quiet machine:** other processes took up to {worst:.0%} of the balancer's core, "
                f"{statistics.median(taken):.0%} in the median run.\n"]

    def _negotiated(self):
        found = {outcome["negotiated"] for some in self._outcomes.values() for outcome in some
                 if "negotiated" in outcome}
        return [f"{name}, X25519, ECDSA P-256" for name in sorted(found)]


def quantity(value):
    """Three digits that mean something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def shown(value, form):
    return "–" if value is None else form.format(value)


def machine():
    processor = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                      if line.startswith("model name")), platform.machine())
    return f"{processor}, {os.cpu_count()} cores, Linux {platform.release()}"
