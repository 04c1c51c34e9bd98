"""``semu ui``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from semu_diffusion.errors import InputError
from semu_diffusion.options import option, require
from semu_diffusion.pipelines.cli.command import Command

__all__ = ["COMMAND", "UiConfig"]


@dataclass(frozen=True)
class UiConfig:
    folder: str = option(
        "runs", "folder of the runs: its patches are picked from, new runs go there", metavar="DIR", positional=True
    )
    model: tuple[str, ...] = option((), "a model to pick beside the embedded ones; repeat", metavar="MODEL")
    device: str | None = option(None, "torch device (default: cuda if there is one, else cpu)", metavar="DEVICE")
    host: str = option("127.0.0.1", "address to listen at", metavar="HOST")
    port: int = option(7860, "port to listen at; 0: any free one", metavar="PORT")
    share_on_network: bool = option(False, "let others on the network in, who may then start erasures and see every run")

    def __post_init__(self) -> None:
        require(0 <= self.port < 2**16, f"--port {self.port}: must lie in [0, 65535]")


def run(config: UiConfig) -> int:
    from semu_diffusion.pipelines.ui import server

    server.check_host(config.host, config.share_on_network)
    folder = Path(config.folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: name the folder that runs lie in")
    server.require_gradio()
    from semu_diffusion.pipelines.runs.models import checked_device
    from semu_diffusion.pipelines.runs.quiet import quiet_libraries
    from semu_diffusion.pipelines.ui.desk import Desk
    from semu_diffusion.pipelines.ui.pictures import Studio
    from semu_diffusion.pipelines.ui.shelf import Shelf

    quiet_libraries()
    checked_device(config.device)
    desk = Desk(Shelf(folder, config.model), Studio(config.device))
    listening = server.listen(config.host, config.port)
    app = server.application(desk, server.names_of(config.host))
    host = f"[{config.host}]" if ":" in config.host else config.host
    print(f"http://{host}:{listening.getsockname()[1]} shows {folder}/; Ctrl-C ends it", flush=True)
    try:
        server.server(app).run(sockets=[listening])
    finally:
        desk.close()
    return 0


COMMAND = Command(
    "semu ui",
    "A page in the browser: pick a model and patches, draw the same seeds before and after at any strength, start an erasure, "
    "open its report. On this machine alone; it reads and writes one folder of runs.",
    UiConfig,
    run,
    examples=("semu ui", "semu ui my-runs --model my-ddpm/ --port 8000"),
)
