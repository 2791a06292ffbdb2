"""What the name of a file promises: a table, code, text, …"""

from __future__ import annotations

from typing import Final, Literal

Kind = Literal["table", "json", "python", "code", "markdown", "text", "binary", "other"]
SUFFIXES: Final[dict[Kind, str]] = {
    "table": ".csv .tsv .tab .psv",
    "json": ".json .jsonl .ndjson .geojson .ipynb",
    "python": ".py .pyi",
    "code": ".c .h .cc .cpp .hpp .cs .css .cu .dart .ex .exs .go .hs .html .java .jl .js .jsx .kt .lua .m "
    ".mjs .php .pl .proto .ps1 .r .rb .rs .scala .scss .sh .bash .sql .svelte .swift .tf .ts .tsx .vue .zig",
    "markdown": ".md .markdown .mdx",
    "text": ".txt .log .rst .adoc .tex .toml .yaml .yml .ini .cfg .conf .xml .properties .env .diff .patch .lock",
    "binary": ".png .jpg .jpeg .gif .webp .ico .pdf .zip .gz .bz2 .xz .zst .7z .tar .whl .jar .so .dylib "
    ".dll .exe .o .a .pyc .class .wasm .mp3 .mp4 .mov .wav .ogg .woff .woff2 .ttf .otf .sqlite .db .npy "
    ".parquet .feather .npz .pkl .pt .onnx .safetensors .xlsx .docx .pptx .bin .iso",
}
KIND_BY_SUFFIX: Final[dict[str, Kind]] = {
    suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes.split()
}
KIND_BY_NAME: Final[dict[str, Kind]] = {
    "makefile": "code",
    "dockerfile": "code",
    "justfile": "code",
    "readme": "text",
    "license": "text",
    "notice": "text",
    "authors": "text",
    "changelog": "text",
}


def kind_of(path: str) -> Kind:
    """The kind that a name promises; what the file really holds, `profile_file` says."""
    name = path.rpartition("/")[2].lower()
    stem, dot, suffix = name.rpartition(".")
    return KIND_BY_SUFFIX.get(dot + suffix) or KIND_BY_NAME.get(name) or KIND_BY_NAME.get(stem) or "other"
