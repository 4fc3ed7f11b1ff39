"""Converts a checkpoint into a model file, one decoder layer at a time.

``pipeline`` has the order of the work, ``walk`` the walk through the decoder, ``packing`` what
becomes of a matrix, ``widths`` how many bits it gets, ``training`` how codes and scales learn
afterwards, ``work_directory`` what an interrupted conversion leaves. Mathematics is in
``awq_edge.quantize``, file formats in ``awq_edge.model_file`` and ``awq_edge.layouts``, printing in
``awq_edge.cli.convert``.
"""

from awq_edge.conversion.options import Options
from awq_edge.conversion.pipeline import convert
from awq_edge.conversion.report import Events, LayerReport, Report

__all__ = ["Events", "LayerReport", "Options", "Report", "convert"]
