from pathlib import Path

from setuptools import find_packages, setup

VERSION = Path("plsc/version.py").read_text().split('__version__ = "')[1].split('"')[0]

# There is no paddle2onnx for Python 3.13 yet.
ONNX = ["paddle2onnx>=2.1; python_version < '3.13'", "onnx", "onnxruntime"]
SERVE = ["starlette", "uvicorn", "httptools", "uvloop; sys_platform != 'win32'", "python-multipart", "orjson",
         "prometheus-client", "protobuf", "urllib3>=2"]
GALLERY = ["faiss-cpu"]

setup(
    name="plsc",
    version=VERSION,
    description="Train classifiers whose last layer has too many classes for one device, on PaddlePaddle",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["plsc", "plsc.*", "plsc_serving", "face_service"]),
    package_data={"plsc.serving": ["pipeline_service/*"]},
    python_requires=">=3.9",
    install_requires=[
        "numpy",
        "opencv-python-headless>=4.12",  # older ones take a truncated JPEG for a whole one
        "Pillow",
        "pydantic>=2",
        "pyyaml",
        "safetensors",
        "simplejpeg>=1.8",
        "tqdm",
        "typer",
        "typing_extensions",
    ],
    extras_require={
        # Paddle's two packages exclude each other, so neither is a plain dependency.
        "cpu": ["paddlepaddle>=3.0"],
        "gpu": ["paddlepaddle-gpu>=3.0"],
        "demo": ["matplotlib", "fonttools"],
        "parquet": ["pyarrow"],
        "onnx": ONNX,
        "serve": SERVE,
        "gallery": GALLERY,
        "test": [*ONNX, *SERVE, *GALLERY, "pyarrow", "pytest", "hypothesis", "matplotlib", "fonttools", "ruff"],
    },
    entry_points={"console_scripts": ["plsc = plsc.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
