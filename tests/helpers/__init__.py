"""What tests of several folders share."""

import pathlib

TESTS = pathlib.Path(__file__).parents[1]
ROOT = TESTS.parent

# the emitters of fusions take most of the time of a compilation; its 32 threads have as much work to be set up
FAST_TO_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
