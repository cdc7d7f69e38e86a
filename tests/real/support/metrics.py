"""Readings of /metrics: one sample a series, looked up by name and labels."""
import re

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Metrics:
    def __init__(self, text: str):
        self.text = text
        self.samples = []
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, labels, value = _SAMPLE.match(line).groups()
                self.samples.append((name, dict(_LABEL.findall(labels or "")), float(value)))

    def matching(self, name: str, **labels) -> list:
        """The (labels, value) pairs of the series that carry these labels."""
        return [(have, value) for sample, have, value in self.samples
                if sample == f"portcullis_{name}" and labels.items() <= have.items()]

    def total(self, name: str, **labels) -> float:
        """The sum over all series that carry these labels; 0 where there is none."""
        return sum(value for _, value in self.matching(name, **labels))

    def by(self, label: str, name: str, **labels) -> dict:
        """Sums by the value of one label."""
        sums = {}
        for have, value in self.matching(name, **labels):
            sums[have[label]] = sums.get(have[label], 0) + value
        return sums
