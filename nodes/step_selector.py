"""TEASRStepSelector gives any number of steps from 1 to 30 as SIGMAS, chosen by hand or by the picture."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..teasr_core.errors import InputError
from ..teasr_core.sampling.auto_steps import DEFAULT_TOLERANCE, AutoSteps
from ..teasr_core.sampling.schedule import StepPlan, manual_plan
from .host.running import own_id, show_on_node
from .inputs import CATEGORY, MAX_SEED, STEP_MODES, mode_input, steps_input, tolerance_input
from .model.conditioning import Conditioning
from .model.dual_branch import recipe_of
from .run.sampling_jobs import sampling_jobs, steps_summary


def check_mode(mode: str) -> None:
    if mode not in STEP_MODES:
        raise InputError(f"step mode is {mode!r}: expected one of {', '.join(STEP_MODES)}")


class TEASRStepSelector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TEASRStepSelector",
            display_name="TEASR Steps",
            category=CATEGORY,
            description="Gives the times of the steps, for TEASRSampler or SamplerCustomAdvanced with euler.",
            search_aliases=["scheduler", "sigmas", "steps", "adaptive", "teasr"],
            inputs=[
                steps_input(),
                mode_input("mode"),
                tolerance_input(),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Wire the MODEL that samples. Auto mode needs it, and so does a LoRA that starts below 1.",
                ),
                io.Conditioning.Input(
                    "conditioning", optional=True, tooltip="Auto mode needs it; TEASRCondition gives it."
                ),
                io.Latent.Input("latent", optional=True, tooltip="Auto mode needs it; TEASRCondition gives it."),
                io.Int.Input(
                    "seed",
                    optional=True,
                    min=0,
                    max=MAX_SEED,
                    force_input=True,
                    tooltip="Auto mode needs the same number as the sampler, for the same noise.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(display_name="sigmas"),
                io.Int.Output(display_name="steps"),
                io.String.Output(display_name="reason", tooltip="It says why this number of steps was chosen."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        steps: int = 1,
        mode: str = "manual",
        tolerance: float = DEFAULT_TOLERANCE,
        model: ModelPatcher | None = None,
        conditioning: Conditioning | None = None,
        latent: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> io.NodeOutput:
        check_mode(mode)
        if mode == "auto":
            if model is None or conditioning is None or latent is None or seed is None:
                wires = {"model": model, "conditioning": conditioning, "latent": latent, "seed": seed}
                missing = [name for name, value in wires.items() if value is None]
                raise InputError(
                    f"mode auto looks at the picture, {' and '.join(missing)} not wired: wire what the sampler gets, "
                    "or set mode to manual"
                )
            jobs = sampling_jobs(model, conditioning, latent, seed)
            plan = plan_with_most_steps(jobs.choose_steps(AutoSteps(tolerance)))
        else:
            plan = manual_plan(steps, recipe_of(model).start_time)
        show_on_node(plan.reason, own_id(cls))
        return io.NodeOutput(plan.taus, plan.steps, plan.reason, ui=ui.PreviewText(plan.reason))


def plan_with_most_steps(plans: list[StepPlan]) -> StepPlan:
    """The plan for a whole batch, which has one SIGMAS wire: the image that needs the most steps decides."""
    most = max(plans, key=lambda plan: plan.steps)
    if len(plans) == 1:
        return most
    return StepPlan(most.taus, f"{most.reason}; the most of {steps_summary(plans).removeprefix('auto: ')}")
