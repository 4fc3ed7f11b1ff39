"""One HTML file with every table and plot, which needs nothing else.

Owns its looks. Plots are SVG inside the page; there is no script and no link to anywhere.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from awq_edge.analysis.calibration_runs import CalibrationResult
from awq_edge.analysis.exponents import EXPONENTS, ExponentCurve
from awq_edge.analysis.salient import RULES, SHARES, SalientResult
from awq_edge.analysis.subject import Settings

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: 0.2rem 0.8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
.note { color: #666; }
"""


@dataclass(frozen=True)
class Analysis:
    """Everything that was measured."""

    name: str
    settings: Settings
    float_perplexity: float
    tokens: int  # scored for each perplexity
    salient: list[SalientResult]
    curves: list[ExponentCurve]
    calibration: list[CalibrationResult]


def write_html(analysis: Analysis) -> str:
    """The whole page."""
    s = analysis.settings
    sections = [
        f"<h1>{_text(analysis.name)}: what rounding to {s.bits} bits does</h1>",
        f"<p>Decoder matrices at {s.bits} bits in groups of {s.group_size}; perplexity over "
        f"{analysis.tokens} tokens (context {s.context}); calibration on {s.samples} blocks of "
        f"{s.sequence_length} tokens unless a table says otherwise. Float perplexity: "
        f"<b>{analysis.float_perplexity:.3f}</b>. Seed {s.seed}.</p>",
        *_salient_section(analysis),
        *_exponent_section(analysis),
    ]
    if analysis.calibration:
        sections += _calibration_section(analysis)
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{_text(analysis.name)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _salient_section(analysis: Analysis) -> list[str]:
    by_key = {(row.rule, row.share): row.perplexity for row in analysis.salient}
    plain = by_key["none", 0.0]
    rows = [
        [f"by {rule}" if rule != "random" else "at random"]
        + [_with_loss(by_key[rule, share], analysis.float_perplexity) for share in SHARES]
        for rule in RULES
    ]
    figure, axes = _figure()
    for rule in RULES:
        axes.plot(
            [100 * share for share in SHARES],
            [by_key[rule, share] for share in SHARES],
            "o-",
            label=rule,
        )
    axes.axhline(plain, color="gray", linestyle=":", label="all rounded")
    axes.axhline(analysis.float_perplexity, color="black", linestyle="--", label="float")
    axes.set(xscale="log", xlabel="channels kept in fp16, %", ylabel="perplexity")
    axes.legend()
    return [
        "<h2>A few channels kept in fp16</h2>",
        f"<p>All rounded: {_with_loss(plain, analysis.float_perplexity)}. Of every matrix, this "
        "share of input channels (at least one) is then given back its fp16 weights.</p>",
        _table(["channels chosen", *(f"{100 * share:g} %" for share in SHARES)], rows),
        _svg(figure),
    ]


def _exponent_section(analysis: Analysis) -> list[str]:
    figure, axes = _figure()
    rows = []
    for matrices in dict.fromkeys(curve.matrices for curve in analysis.curves):
        curves = [curve for curve in analysis.curves if curve.matrices == matrices]
        label = " + ".join(matrices)
        means = [
            _geometric_mean([_ratio(curve, index) for curve in curves])
            for index in range(len(EXPONENTS))
        ]
        axes.plot(EXPONENTS, means, "o-", label=label)
        best = min(range(len(means)), key=means.__getitem__)
        chosen = [curve.best for curve in curves]
        rows.append(
            [
                label,
                f"{EXPONENTS[best]:.1f}",
                f"{means[best]:.3f}",
                f"{min(chosen):.1f} … {max(chosen):.1f}",
            ]
        )
    axes.axhline(1.0, color="gray", linestyle=":")
    axes.set(xlabel="exponent", ylabel="output error, rounding = 1")
    axes.legend()
    return [
        "<h2>Error against the exponent</h2>",
        "<p>Every channel is multiplied by its activations' mean magnitude to this power before "
        "rounding, and divided by it afterwards. The squared error of the matrices' outputs, "
        "relative to plain rounding, is averaged over the layers (geometric mean).</p>",
        _table(["matrices", "best exponent", "error there", "best of single layers"], rows),
        _svg(figure),
    ]


def _calibration_section(analysis: Analysis) -> list[str]:
    results = analysis.calibration
    own = results[0].text
    figure, axes = _figure()
    for method in dict.fromkeys(row.method for row in results):
        mine = [row for row in results if row.method == method and row.text == own]
        axes.plot(
            [row.blocks for row in mine], [row.perplexity for row in mine], "o-", label=method
        )
    axes.set(xscale="log", xlabel="calibration blocks", ylabel="perplexity")
    axes.legend()
    rows = [
        [
            row.text,
            row.method,
            str(row.blocks),
            _with_loss(row.perplexity, analysis.float_perplexity),
        ]
        for row in results
    ]
    return [
        "<h2>Calibration: how much, and of what</h2>",
        "<p>Whole conversions; embedding and head are left in floats.</p>",
        _table(["text", "method", "blocks", "perplexity"], rows),
        _svg(figure),
    ]


def _ratio(curve: ExponentCurve, index: int) -> float:
    return curve.errors[index] / curve.errors[0] if curve.errors[0] > 0 else 1.0


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(max(value, 1e-30)) for value in values) / len(values))


def _with_loss(value: float, reference: float) -> str:
    return f"{value:.3f} ({100 * (value / reference - 1):+.2f} %)"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    lines = ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    # Not pyplot: it would look for a screen.
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _svg(figure: Any) -> str:
    """The figure as an element of the page."""
    import matplotlib

    out = io.StringIO()
    # Text stays text, and names do not change from run to run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "awq-edge"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _text(text: str) -> str:
    return html.escape(str(text))
