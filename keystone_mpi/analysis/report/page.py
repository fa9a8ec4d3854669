"""The page: facts into one HTML file.

Rule: text becomes markup only through `_text`; data reaches the script only
through `_json`. Neither lets a ``<`` of a user through.

    facts --> sections --> <html> with report.css, report.js and the data inside
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import html
import math
from pathlib import Path
from typing import Any

import msgspec

from keystone_mpi import __version__
from keystone_mpi.analysis.report import facts
from keystone_mpi.analysis.run import Run

HERE = Path(__file__).parent
UNITS = (
    (1e-3, 1e-6, "µs"),
    (1.0, 1e-3, "ms"),
    (120.0, 1.0, "s"),
    (7200.0, 60.0, "min"),
    (172800.0, 3600.0, "h"),
)
"""(up to so many seconds, seconds per unit, unit); days above."""
ROUNDS_UP = 0.9995
"""Three digits turn what is closer to a limit than this into the next unit's round number."""
BADGES = {
    "running": "running",
    "complete": "complete",
    "interrupted": "stopped with work left",
    "died": "died, nothing recorded is lost",
}


def render_report(run: Run) -> str:
    """Return the report of a run as one self-contained HTML page."""
    statistics = run.stats()
    data = {
        "timeline": facts.timeline(run),
        "utilisation": facts.utilisation(run),
        "durations": facts.durations(run),
        "scatter": facts.scatter(run),
    }
    sections = [
        _summary(run, statistics),
        _timeline(data["timeline"]),
        _activity(statistics, data),
        _scatter(data["scatter"]),
        _failures(run, statistics),
        _workers(statistics),
        _provenance(run),
    ]
    body = "\n".join(section for section in sections if section)
    links = [
        f'<a href="#{name}">{label}</a>'
        for name, label in (
            ("summary", "Summary"),
            ("timeline", "Timeline"),
            ("activity", "Utilisation and durations"),
            ("results", "Results"),
            ("failures", "Failures"),
            ("workers", "Workers"),
            ("provenance", "Provenance"),
        )
        if f'id="{name}"' in body
    ]
    style = (HERE / "report.css").read_text(encoding="utf-8")
    script = (HERE / "report.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{_digest(script)}'"
    )
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="keystone_mpi {__version__}">
<title>{_text(run.name)} · keystone_mpi report</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<a class="skip" href="#summary">Skip to the summary</a>
<div class="page">
<header>
<div>
<h1>{_text(run.name)}<span class="badge {run.phase}" id="state">{BADGES[run.phase]}</span></h1>
<p class="lead">{_text(str(run.path.absolute()))}</p>
</div>
<button type="button" id="theme">Dark / light</button>
</header>
<nav aria-label="Sections">{"".join(links)}</nav>
<main>
{body}
</main>
<footer>Written by keystone_mpi {__version__} on {_text(now)}.
This page loads nothing from the network.</footer>
</div>
<script type="application/json" id="data">{_json(data)}</script>
<script>{script}</script>
</body>
</html>
"""


def _text(value: object) -> str:
    """Escape a text for the page, attributes included; control characters are shown."""
    visible = "".join(
        character if character >= " " or character in "\n\t" else chr(0x2400 + ord(character))
        for character in str(value)
    )
    return html.escape(visible.encode("utf-8", "replace").decode(), quote=True)


def _json(data: object) -> str:
    """Encode data for a script element: nothing in it can end the element or begin a comment."""
    encoded = msgspec.json.encode(data).decode()
    for character in "<>&\u2028\u2029":
        encoded = encoded.replace(character, f"\\u{ord(character):04x}")
    return encoded


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


# --------------------------------------------------------------------- sections


def _section(name: str, title: str, content: str, note: str = "") -> str:
    said = f'<p class="note">{note}</p>' if note else ""
    return (
        f'<section id="{name}" aria-labelledby="{name}-title"><div class="head">'
        f'<h2 id="{name}-title">{title}</h2>{said}</div>\n{content}</section>'
    )


def _summary(run: Run, stats: dict[str, Any]) -> str:
    total = stats["total_tasks"]
    tiles = [
        ("tasks", f"{total:,}", f"{stats['attempts']:,} attempts", ""),
        ("succeeded", f"{stats['completed']:,}", _share(stats["completed"], total), ""),
        ("failed", f"{stats['failed']:,}", _share(stats["failed"], total), "bad" if stats["failed"] else ""),
    ]
    for name in ("running", "pending"):
        if stats[name]:
            tiles.append((name, f"{stats[name]:,}", _share(stats[name], total), ""))
    if stats["elapsed_s"] > 0:
        tiles += [
            ("elapsed", duration(stats["elapsed_s"]), "first start to last end", ""),
            ("task time", duration(stats["total_duration"]), f"mean {duration(stats['avg_duration'])}", ""),
            ("speedup", f"{stats['speedup']:.3g}", "task time / elapsed", ""),
            ("efficiency", f"{stats['efficiency']:.0%}", f"of {stats['usable_slots']:.3g} usable slots", ""),
        ]
    cells = "".join(
        f'<div class="{kind}" id="tile-{label.replace(" ", "-")}"><dt>{label}</dt>'
        f"<dd>{value}<small>{small}</small></dd></div>"
        for label, value, small, kind in tiles
    )
    content = f'<dl class="tiles">{cells}</dl>{_share_bar(stats)}'
    for sentence in stats["common"]:
        content += f'<p class="finding">{_text(sentence)}</p>'
    started = run.contents.created
    note = f"first started {_text(_clock(started))}"
    if stats["starts"] > 1:
        note += f", in {stats['starts']} starts"
    return _section("summary", "Summary", content, note)


def _share_bar(stats: dict[str, Any]) -> str:
    total = max(stats["total_tasks"], 1)
    parts, x = [], 0.0
    kinds = (("done", "completed"), ("failed", "failed"), ("running", "running"), ("pending", "pending"))
    for css, name in kinds:
        width = 1000.0 * stats[name] / total
        if stats[name]:
            parts.append(f'<rect class="{css}" x="{x:.2f}" y="0" width="{max(width, 3):.2f}" height="10"/>')
        x += width
    label = ", ".join(f"{stats[name]:,} {name}" for _, name in kinds)
    return (
        f'<svg class="share" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )


def _timeline(timeline: dict[str, Any]) -> str:
    if timeline["kind"] == "none":
        return ""
    detailed = timeline["kind"] == "detail"
    if detailed:
        note = f"{timeline['count']:,} attempts, one bar each; a row is a slot of a worker"
        if timeline["running"]:
            note += f"; {timeline['running']:,} that still run are not shown"
        key = "".join(
            f'<li><i class="k-{css}"></i>{label}</li>'
            for css, label in (
                ("ok", "succeeded"), ("fail", "failed"), ("time", "timed out"),
                ("memory", "out of memory"), ("lost", "cancelled, lost or interrupted"),
            )
        )  # fmt: skip
    else:
        note = f"{timeline['count']:,} attempts as density: the darker, the busier"
        key = '<li><i class="k-ok"></i>share of the slots in use</li>'
    keys = "arrows move, + and − zoom, 0 shows all" + (", n and p step through attempts" if detailed else "")
    content = f"""<div class="controls">
<button type="button" id="gantt-in" aria-label="Zoom in">Zoom in</button>
<button type="button" id="gantt-out" aria-label="Zoom out">Zoom out</button>
<button type="button" id="gantt-all">Show all</button>
<span class="hint">drag to move, double-click or Ctrl + wheel to zoom; with the keyboard: {keys}</span>
</div>
<canvas id="gantt" tabindex="0" role="img"
 aria-label="Timeline of the attempts on each worker. {keys}."></canvas>
<p id="gantt-tip" aria-live="polite"></p>
<ul class="key">{key}</ul>"""
    return _section("timeline", "Worker timeline", content, note)


def _activity(stats: dict[str, Any], data: dict[str, Any]) -> str:
    if not data["utilisation"]["values"] or not data["durations"]["counts"]:
        return ""
    overhead, wait = stats["dispatch_overhead_s"], stats["queue_wait_s"]
    left = (
        f'<div class="chart" id="utilisation-chart"></div><p class="note">{stats["utilisation"]:.0%} of the '
        f"slot time was used. A slot waited {duration(overhead['median'])} (median) between two tasks; a "
        f"task waited {duration(wait['median'])} (median) for a slot; the tail took "
        f"{duration(stats['tail_s'])}.</p>"
    )
    right = (
        f'<div class="chart" id="durations-chart"></div><p class="note">Shortest '
        f"{duration(stats['min_duration'])}, median {duration(stats['median_duration'])}, longest "
        f"{duration(stats['max_duration'])}.</p>"
    )
    return (
        f'<div class="two" id="activity">{_section("utilisation", "Utilisation over time", left)}'
        f"{_section('durations', 'Durations', right)}</div>"
    )


def _scatter(scatter: dict[str, Any]) -> str:
    params, results = scatter["params"], scatter["results"]
    if not params or not results:
        return ""
    shown = len(scatter["task"])
    note = f"{shown:,} of {scatter['of']:,} tasks, chosen at random" if shown < scatter["of"] else ""
    varied = [name for name in params if len(set(scatter["columns"][f"p:{name}"]["values"])) > 1] or params
    # The colour tells a few values apart best.
    few = [name for name in varied[1:] if len(set(scatter["columns"][f"p:{name}"]["values"])) <= 8]
    shading = (few or varied[1:] or [""])[0]

    def options(names: list[str], prefix: str, chosen: str) -> str:
        return "".join(
            f'<option value="{_text(prefix + name)}"{" selected" if name == chosen else ""}>'
            f"{_text(name)}</option>"
            for name in names
        )

    axes = options(params, "p:", varied[0]) + options(results, "r:", "")
    content = f"""<div class="controls">
<label>vertical <select id="scatter-y">{options(results, "r:", results[0])}</select></label>
<label>horizontal <select id="scatter-x">{axes}</select></label>
<label>colour <select id="scatter-c"><option value="">none</option>
{options(params, "p:", shading)}</select></label>
<label><input type="checkbox" id="scatter-logx"> log horizontal</label>
<label><input type="checkbox" id="scatter-logy"> log vertical</label>
</div>
<div class="chart" id="scatter-chart"></div>
<ul class="key" id="scatter-key"></ul>"""
    return _section("results", "Results against parameters", content, note)


def _failures(run: Run, stats: dict[str, Any]) -> str:
    if not stats["failed"]:
        return ""
    groups = facts.failure_details(run, stats["failures"])
    parts = []
    for position, item in enumerate(groups):
        group = item["group"]
        hosts = ", ".join(f"{host} ({count:,})" for host, count in list(group.hosts.items())[:4])
        more = ", …" if len(group.hosts) > 4 else ""
        examples = "".join(_example(example, group.error) for example in item["examples"])
        tasks = ", ".join(group.tasks) + (", …" if group.count > len(group.tasks) else "")
        parts.append(
            f"<details{' open' if position == 0 else ''}><summary><b>{group.count:,} ×</b> "
            f"{_text(group.error)}"
            f'<span class="note">{_text(group.ending)}; task {_text(tasks)}'
            f"{'; on ' + _text(hosts) + more if hosts else ''}</span></summary>{examples}</details>"
        )
    rest = stats["failed"] - sum(item["group"].count for item in groups)
    if rest > 0:
        parts.append(f'<p class="note">and {rest:,} of other kinds</p>')
    kinds = len(stats["failures"])
    note = f"{stats['failed']:,} tasks, {kinds} kind{'' if kinds == 1 else 's'}"
    return _section("failures", "Failures", "\n".join(parts), note)


def _example(example: dict[str, Any], said: str) -> str:
    params = " ".join(f"{name}={_number(value)}" for name, value in example["params"].items())
    ran = []
    if example["number"]:
        ran.append(f"attempt {example['number']}")
    if example["host"]:
        ran.append(f"on {example['host']}")
    if math.isfinite(example["duration_s"]):
        ran.append(duration(example["duration_s"]))
    parts = [
        f'<div class="example"><h3>task {_text(example["task"])}</h3>'
        f'<p class="note">{_text(params)}{" · " if params and ran else ""}{_text(", ".join(ran))}</p>'
    ]
    if example["error"] and example["error"] != said:
        parts.append(f"<p>{_text(example['error'])}</p>")
    for name in ("stderr", "stdout"):
        if example[name].strip():
            parts.append(f'<p class="stream">end of {name}</p><pre>{_text(example[name].rstrip())}</pre>')
    if example["command"]:
        parts.append(f'<p class="stream">command</p><pre>{_text(example["command"])}</pre>')
    parts.append(
        f'<p class="stream">run it again, here, in the foreground</p><div class="rerun"><code>'
        f'{_text(example["rerun"])}</code><button type="button" class="copy">copy</button></div></div>'
    )
    return "".join(parts)


def _workers(stats: dict[str, Any]) -> str:
    rows = facts.workers_table(stats)
    if not rows:
        return ""
    body = "".join(
        f"<tr><td>{_text(row['host'])}</td><td class='n'>{row['rank']}</td><td class='n'>{row['slots']}</td>"
        f"<td class='n'>{row['attempts']:,}</td><td class='n'>{duration(row['busy_s'])}</td>"
        f"<td class='n'>{row['utilisation']:.0%}</td></tr>"
        for row in rows
    )
    heads = "".join(
        f"<th scope='col'{' class=n' if head != 'host' else ''}>{head}</th>"
        for head in ("host", "rank", "slots", "attempts", "busy", "utilisation")
    )
    table = (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of workers"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )
    return _section("workers", "Workers", table, "the least used first")


def _provenance(run: Run) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{_text(label)}</th><td>{_text(text)}</td></tr>"
        for label, text in facts.provenance(run)
    )
    content = f'<table class="facts"><tbody>{rows}</tbody></table>'
    if run.sweep_text.strip():
        content += (
            f"<details><summary>the sweep file</summary><pre>{_text(run.sweep_text.rstrip())}</pre></details>"
        )
    return _section("provenance", "Provenance", content)


# ----------------------------------------------------------------------- words


def _share(part: int, total: int) -> str:
    if not total or not part:
        return "0%"
    percent = 100.0 * part / total
    return "<1%".replace("<", "&lt;") if percent < 1 else f"{math.floor(percent)}%"


def _number(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _clock(stamp: float) -> str:
    return datetime.datetime.fromtimestamp(stamp).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def duration(seconds: float) -> str:
    """Say a duration in its natural unit."""
    if seconds == 0 or not math.isfinite(seconds):
        return "0 s" if seconds == 0 else "-"
    for limit, unit_s, unit in UNITS:
        if seconds < limit * ROUNDS_UP:
            return f"{seconds / unit_s:.3g} {unit}"
    return f"{seconds / 86400:.3g} d"
