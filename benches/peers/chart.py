"""The chart: for each workload a group of bars, one a peer, shorter is better."""

from html import escape

COLUMNS = 2
COLUMN_WIDTH = 430
MARGIN = 20
HEAD = 52
GROUP_HEAD = 26
GROUP_FOOT = 18
BAR = 15
GAP = 3
# Of a group, what is left of the bars for names and right of them for values.
LEFT = 80
RIGHT = 110
OURS = "#0b7a75"
THEIRS = ["#5c6b7a", "#7d8b99", "#9eabb7", "#bcc6cf", "#d3dae0"]
FONT = "font-family=\"ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\""


def draw(results):
    """The whole picture as SVG; on a light ground of its own, so readable on dark pages too."""
    drawn = [workload for workload in results.workloads if _values(results, workload)]
    group_height = GROUP_HEAD + len(results.peers) * (BAR + GAP) + GROUP_FOOT
    width = 2 * MARGIN + COLUMNS * COLUMN_WIDTH
    height = HEAD + -(-len(drawn) // COLUMNS) * group_height
    groups = [
        _group(results, workload, MARGIN + index % COLUMNS * COLUMN_WIDTH, HEAD + index // COLUMNS * group_height)
        for index, workload in enumerate(drawn)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" {FONT} role="img" aria-label="Portcullis and other balancers">\n'
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>\n'
        + _text(MARGIN, 30, "What a request costs: one core, one worker, shorter is better", size=17, weight=600)
        + "".join(groups) + "</svg>\n"
    )


def _values(results, workload):
    """Medians by name of peer, without those that have none."""
    values = {peer.name: results.median(peer, workload, workload.headline) for peer in results.peers}
    return {name: value for name, value in values.items() if value is not None}


def _group(results, workload, x, y):
    """The bars of one workload, down from the corner given."""
    values = _values(results, workload)
    longest = max(*values.values(), 0.001)
    best = results.ratios(workload).get("best")
    parts = [_text(x, y + 14, f"{workload.title}, {workload.unit}", size=12, weight=600)]
    for index, peer in enumerate(results.peers):
        row = y + GROUP_HEAD + index * (BAR + GAP)
        first = index == 0
        parts.append(_text(x + LEFT - 8, row + 12, peer.name, size=12, anchor="end", weight=600 if first else 400))
        if peer.name not in values:
            parts.append(_text(x + LEFT, row + 12, "void", size=12, fill="#a33"))
            continue
        value = values[peer.name]
        length = max(1, (COLUMN_WIDTH - LEFT - RIGHT) * value / longest)
        fill = OURS if first else THEIRS[min(index, len(THEIRS)) - 1]
        label = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
        label += f"  ({best:.2f} × the best)" if first and best else ""
        parts.append(f'<rect x="{x + LEFT}" y="{row}" width="{length:.1f}" height="{BAR}" rx="2" fill="{fill}"/>\n')
        parts.append(_text(x + LEFT + length + 6, row + 12, label, size=12))
    return "".join(parts)


def _text(x, y, words, size, weight=400, anchor="start", fill="#1c2430"):
    return (f'<text x="{x:.0f}" y="{y}" font-size="{size}" font-weight="{weight}" '
            f'text-anchor="{anchor}" fill="{fill}">{escape(words)}</text>\n')
