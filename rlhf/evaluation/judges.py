"""Opens the held-out judges of the configuration's `judges:`; a judge that cannot judge is left out with the reason."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.config.devices import resolve_device
from rlhf.config.reward_kinds import KINDS
from rlhf.config.run_config import RunConfig
from rlhf.data.prompts import Prompt
from rlhf.errors import UserError
from rlhf.evaluation.comparison_records import MissingMeasure
from rlhf.evaluation.feature_distances import Features, PictureDistance, open_features, open_lpips
from rlhf.evaluation.network_judge import NAME, NetworkJudge, open_network_judge
from rlhf.rewards.open_reward import build_reward, check_captions
from rlhf.rewards.scores import Reward


@dataclass(frozen=True, kw_only=True)
class HeldOutJudges:
    """Judges that can judge, and what is left out."""

    judges: dict[str, Reward]
    lpips: PictureDistance | None
    network: NetworkJudge | None
    """The held-out network, which is also among `judges`."""
    features: Features | None
    left_out: list[MissingMeasure]


def open_judges(config: RunConfig, prompts: Sequence[Prompt]) -> HeldOutJudges:
    """Opens every judge and lets it mark the first original, so that missing parts show before hours of painting."""
    judges: dict[str, Reward] = {}
    left_out: list[MissingMeasure] = []
    device = resolve_device(config.model.device)
    for entry in config.judges:
        try:
            judge = build_reward(entry, None, device)
            check_captions([entry], {prompt.prompt_id: prompt.caption for prompt in prompts})
            judge.score(prompts[0].image[None], prompts[0].mask[None], [prompts[0].caption])
        except UserError as error:
            left_out.append(MissingMeasure(measure=entry.label, reason=str(error)))
            continue
        judges[entry.label] = judge
    named = {entry.kind for entry in config.judges}
    for kind, row in KINDS.items():
        if row.published_as is not None and kind not in named:
            reason = f"no weights are named: add `kind: {kind}` to `judges`"
            left_out.append(MissingMeasure(measure=row.published_as, reason=reason))
    lpips: PictureDistance | None = None
    network: NetworkJudge | None = None
    features: Features | None = None
    try:
        network = open_network_judge(device)
        judges[NAME] = network
    except UserError as error:
        left_out.append(MissingMeasure(measure="held-out network", reason=str(error)))
    try:
        lpips = open_lpips(device)
    except UserError as error:
        left_out.append(MissingMeasure(measure="LPIPS", reason=str(error)))
    try:
        if config.evaluate.features is None and network is not None:
            features = network.describe
        else:
            features = open_features(config.evaluate.features, device)
    except UserError as error:
        left_out.append(MissingMeasure(measure="FID, KID", reason=str(error)))
    return HeldOutJudges(judges=judges, lpips=lpips, network=network, features=features, left_out=left_out)
