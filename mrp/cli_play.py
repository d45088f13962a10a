"""The commands that play: `mrp route`, `chat`, `scene`, `serve` and `new-key`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mrp.command_line import BITS, HERE, SET, command, settings_given
from mrp.report import Reporter

app = typer.Typer()  # its commands stand beside those of cli.py


@command(app, "route")
def route(
    report: Reporter,
    run: Annotated[Path, typer.Argument(help="A run file, or the folder of a run.", show_default=False)],
    text: Annotated[str, typer.Argument(help="What a person says.", show_default=False)],
    current: Annotated[str | None, typer.Option("--current", metavar="NAME", help="Who answered last.")] = None,
    by: Annotated[str, typer.Option("--by", help="auto, names, classifier or model.")] = "auto",
    bits: BITS = "auto",
    set_: SET = None,
) -> Any:
    """Tell which character answers a message, how sure that is, and why."""
    from mrp.play.route import route_command

    found = route_command(run, text, current, by, settings_given(set_), bits)
    report.result(f"{found['character']} ({found['confidence']:.0%}): {found['reason']}")
    for who, share in sorted(found["scores"].items(), key=lambda item: -item[1]):
        report.line(f"  {who:20} {share:6.1%}")
    return found


@command(app, "chat")
def chat_command(
    report: Reporter,
    run: Annotated[Path, typer.Argument(help="A run, or a model folder.", show_default=False)] = HERE,
    as_: Annotated[
        str,
        typer.Option("--as", metavar="auto|NAME", help="Who answers; auto: whoever is called or meant."),
    ] = "auto",
    me: Annotated[str | None, typer.Option("--me", metavar="NAME", help="Who you are in the chat.")] = None,
    base: Annotated[str | None, typer.Option(help="The base model, for an adapter folder.")] = None,
    cast: Annotated[Path | None, typer.Option(help="The cast.yaml, for a model folder.")] = None,
    template: Annotated[Path | None, typer.Option(help="Another chat template (jinja).")] = None,
    scenario: Annotated[str, typer.Option(help="The setting.")] = "",
    seed: Annotated[int | None, typer.Option(help="Equal seeds give equal replies.")] = None,
    memory: Annotated[
        int, typer.Option(metavar="N", min=0, help="Tokens of each one's summary of what no longer fits.")
    ] = 128,
    lore: Annotated[int, typer.Option(metavar="N", min=0, help="Tokens of lore in a prompt.")] = 256,
    base_url: Annotated[
        str | None, typer.Option("--base-url", metavar="URL", help="A server with the model, instead of loading it.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Which of the server's models.")] = None,
    bits: BITS = "auto",
    engine: Annotated[str, typer.Option(help="transformers, or onnx (CPU, merged model).")] = "transformers",
    set_: SET = None,
) -> Any:
    """Talk with the characters. /help in the chat lists what else you can do."""
    with report.waiting("loading the model"):
        from mrp.play.remote_player import open_anywhere
        from mrp.play.room import room_of
        from mrp.play.terminal import TerminalChat

        player = open_anywhere(
            run,
            url=base_url,
            model=model,
            base=base,
            cast=cast,
            template=template,
            flags=settings_given(set_),
            bits=bits,
            engine=engine,
            warn=report.warn,
        )
        room = room_of(run, player)
    chat = TerminalChat(
        player,
        as_,
        me,
        seed,
        report,
        router=room.router,
        folder=room.chats,
        scenario=scenario,
        memory=memory,
        lore=lore,
    )
    return chat.run()


@command(app, "serve")
def serve_command(
    report: Reporter,
    run: Annotated[Path, typer.Argument(help="A run, or a model folder.", show_default=False)] = HERE,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    keys: Annotated[Path | None, typer.Option(help="API keys (`mrp new-key`); or set MRP_API_KEY.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Serve other machines without a key.")] = False,
    allow_system: Annotated[
        bool, typer.Option("--allow-system", help="A client's system message replaces the persona.")
    ] = False,
    allow_host: Annotated[list[str] | None, typer.Option(help="A host name that the server is called by.")] = None,
    engine: Annotated[str, typer.Option(help="transformers, or openai (a server behind).")] = "transformers",
    base_url: Annotated[
        list[str] | None, typer.Option(help="The server behind, such as http://HOST:8000/v1; several share the work.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model's name there; else its first.")] = None,
    max_running: Annotated[int, typer.Option(min=1, help="Replies at once.")] = 8,
    max_waiting: Annotated[int, typer.Option(min=0, help="Requests that wait; more are refused.")] = 64,
    rate: Annotated[int, typer.Option(min=0, help="Requests a minute of one client; 0: any number.")] = 600,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for a whole reply.")] = 600,
    drain: Annotated[int, typer.Option(min=0, help="Seconds to finish replies when stopped.")] = 30,
    base: Annotated[str | None, typer.Option(help="The base model, for an adapter folder.")] = None,
    cast: Annotated[Path | None, typer.Option(help="The cast.yaml, for a model folder.")] = None,
    bits: BITS = "auto",
    template: Annotated[Path | None, typer.Option(help="Another chat template (jinja).")] = None,
    set_: SET = None,
) -> Any:
    """Serve the characters as models of an OpenAI-compatible API."""
    from mrp.serve.command import ServeFlags, serve_command

    flags = ServeFlags(
        host=host,
        port=port,
        keys=keys,
        insecure=insecure,
        allow_system=allow_system,
        allow_host=tuple(allow_host or ()),
        engine=engine,
        base_urls=tuple(base_url or ()),
        model=model,
        max_running=max_running,
        max_waiting=max_waiting,
        requests_per_minute=rate,
        timeout_s=timeout,
        drain_s=drain,
        bits=bits,
    )
    return serve_command(run, flags, base, cast, template, settings_given(set_), report)


@command(app, "new-key")
def new_key_command(
    file: Annotated[Path, typer.Argument(help="The file of keys; made if there is none.")],
    report: Reporter,
    name: Annotated[str, typer.Option(help="Whose key it is.")] = "default",
) -> Any:
    """Make an API key for `mrp serve --keys FILE`. It is shown once; the file keeps its hash."""
    from mrp.serve.keys import add_key

    key = add_key(file, name)
    report.result(key)
    return {"key": key}


@command(app, "scene")
def scene_command(
    report: Reporter,
    run: Annotated[Path, typer.Argument(help="A run, or a model folder.", show_default=False)] = HERE,
    with_: Annotated[str | None, typer.Option("--with", metavar="A,B", help="Who is there at the start.")] = None,
    script: Annotated[Path | None, typer.Option(help="A script (YAML): fixed lines, entrances, who speaks.")] = None,
    turns: Annotated[int | None, typer.Option(help="Lines in all.  [default: 20, or the script's]")] = None,
    director: Annotated[
        str | None, typer.Option(help="Who speaks next: natural, round-robin, model, manual.  [default: natural]")
    ] = None,
    me: Annotated[str | None, typer.Option("--me", metavar="NAME", help="Who you play.")] = None,
    scenario: Annotated[str | None, typer.Option(help="The setting.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep the scene in this file (.jsonl); goes on if it is one.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="FILE", help="Go on with the scene in this file.")] = None,
    seed: Annotated[int | None, typer.Option(help="Equal seeds give equal scenes.  [default: 0]")] = None,
    memory: Annotated[int | None, typer.Option(help="Tokens of each one's summary of what no longer fits.")] = None,
    lore: Annotated[int | None, typer.Option(help="Tokens of lore in a prompt.")] = None,
    base: Annotated[str | None, typer.Option(help="The base model, for an adapter folder.")] = None,
    cast: Annotated[Path | None, typer.Option(help="The cast.yaml, for a model folder.")] = None,
    base_url: Annotated[
        str | None, typer.Option("--base-url", metavar="URL", help="A server with the model, instead of loading it.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Which of the server's models.")] = None,
    bits: BITS = "auto",
    set_: SET = None,
) -> Any:
    """Let characters play a scene, with you in it if you like. Who is away does not hear what is said."""
    from mrp.play.scene_command import Asked, play_scene

    with report.waiting("loading the model"):
        from mrp.play.remote_player import open_anywhere

        settings = settings_given(set_)
        asked = Asked(with_, script, turns, director, me, scenario, seed, memory, lore)
        player = open_anywhere(
            run,
            url=base_url,
            model=model,
            base=base,
            cast=cast,
            flags=settings,
            bits=bits,
            chats=asked.named,
            warn=report.warn,
        )
    return play_scene(player, asked, out, resume, report)
