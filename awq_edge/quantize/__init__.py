"""The group quantiser, calibration data and the AWQ search. Needs the extra ``convert``."""
