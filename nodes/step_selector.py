"""TEASRStepSelector: any number of steps from 1 to 30 as SIGMAS."""

from __future__ import annotations

from comfy_api.latest import io

from ..teasr_core.errors import InputError
from ..teasr_core.schedule import MAX_STEPS, MIN_STEPS, manual_plan

STEP_MODES = ("manual",)


def steps_input() -> io.Int.Input:
    return io.Int.Input(
        "steps",
        default=1,
        min=MIN_STEPS,
        max=MAX_STEPS,
        display_mode=io.NumberDisplay.slider,
        tooltip="1 is the fastest and closest to the input; more steps add texture. Every number works.",
    )


def mode_input(name: str) -> io.Combo.Input:
    return io.Combo.Input(
        name, options=list(STEP_MODES), default="manual", tooltip="manual: the number of steps on the slider."
    )


def check_mode(mode: str) -> None:
    if mode not in STEP_MODES:
        raise InputError(f"step mode is {mode!r}: expected one of {', '.join(STEP_MODES)}")


class TEASRStepSelector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TEASRStepSelector",
            display_name="TEASR Steps",
            category="TEASR",
            description="The times a TEASR model visits, for TEASRSampler or SamplerCustomAdvanced with euler.",
            search_aliases=["scheduler", "sigmas", "steps", "teasr"],
            inputs=[steps_input(), mode_input("mode")],
            outputs=[
                io.Sigmas.Output(display_name="sigmas"),
                io.Int.Output(display_name="steps"),
                io.String.Output(display_name="reason", tooltip="Why this number of steps."),
            ],
        )

    @classmethod
    def execute(cls, steps: int = 1, mode: str = "manual") -> io.NodeOutput:
        check_mode(mode)
        plan = manual_plan(steps)
        return io.NodeOutput(plan.taus, plan.steps, plan.reason)
