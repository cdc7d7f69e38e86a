"""The chart: for each workload a group of bars, one a peer, shorter is better."""

from html import escape

WIDTH = 860
BAR = 15
GAP = 3
LEFT = 130
RIGHT = 150
GROUP_HEAD = 26
OURS = "#0b7a75"
THEIRS = ["#5c6b7a", "#7d8b99", "#9eabb7", "#bcc6cf", "#d3dae0"]
FONT = "font-family=\"ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\""


def draw(results):
    """The whole picture as SVG; readable on light and dark pages."""
    y, parts = 56, []
    for workload in results.workloads:
        group, height = _group(results, workload, y)
        if group:
            parts.append(group)
            y += height
    height = y + 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" {FONT} role="img" aria-label="Portcullis and other balancers">\n'
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>\n'
        + _text(20, 30, "What a request costs: one core, one worker, shorter is better", size=17, weight=600)
        + "".join(parts) + "</svg>\n"
    )


def _group(results, workload, y):
    """The bars of one workload from `y` down, and how high they are; none where nothing was measured."""
    values = [(peer, results.median(peer, workload, workload.headline)) for peer in results.peers]
    measured = [value for _, value in values if value is not None]
    if not measured:
        return "", 0
    longest = max(*measured, 0.001)
    parts = [_text(20, y + 14, f"{workload.title}, {workload.unit}", size=13, weight=600)]
    if best := results.ratios(workload).get("best"):
        parts.append(_text(WIDTH - 20, y + 14, f"{best:.2f} × the best other", size=12, anchor="end", fill="#445"))
    row = y + GROUP_HEAD
    for index, (peer, value) in enumerate(values):
        fill = OURS if index == 0 else THEIRS[min(index, len(THEIRS)) - 1]
        parts.append(_text(LEFT - 8, row + 12, peer.name, size=12, anchor="end", weight=600 if index == 0 else 400))
        if value is None:
            parts.append(_text(LEFT, row + 12, "void", size=12, fill="#a33"))
        else:
            length = max(1, (WIDTH - LEFT - RIGHT) * value / longest)
            parts.append(f'<rect x="{LEFT}" y="{row}" width="{length:.1f}" height="{BAR}" rx="2" fill="{fill}"/>\n')
            parts.append(_text(LEFT + length + 6, row + 12, _label(value), size=12))
        row += BAR + GAP
    return "".join(parts), row - y + 14


def _label(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _text(x, y, words, size, weight=400, anchor="start", fill="#1c2430"):
    return (f'<text x="{x:.0f}" y="{y}" font-size="{size}" font-weight="{weight}" '
            f'text-anchor="{anchor}" fill="{fill}">{escape(words)}</text>\n')
