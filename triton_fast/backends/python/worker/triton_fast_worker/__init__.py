"""The worker's side of the Python backend: runs models in any CPython from 3.9 with numpy, importing nothing else."""
