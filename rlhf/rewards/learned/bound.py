"""The ridge head and the upper bound on its error: V, uncertainty, the two multipliers, trust weights."""

import math
from dataclasses import dataclass

import torch

from rlhf.errors import UserError

TRUST_MEDIAN = 7.3
"""Uncertainty is scaled to this calibration median, so that E[gamma] is the paper's 1.4."""


@dataclass(frozen=True, kw_only=True)
class RidgeHead:
    """The last layer psi, in closed form, and V = Z'Z + lambda I as its Cholesky factor."""

    weight: torch.Tensor
    """float64 [d]: psi_hat."""
    cholesky: torch.Tensor
    """float64 [d, d], lower triangular L with L L' = V."""
    ridge: float
    """lambda."""

    def reward(self, features: torch.Tensor) -> torch.Tensor:
        """z' psi_hat; features [B, d], returns float64 [B]."""
        return features.double() @ self.weight

    def uncertainty(self, features: torch.Tensor) -> torch.Tensor:
        """sqrt(z' V^-1 z) (PrefPaint eq. 7, as its proof needs it); features [B, d], returns float64 [B]."""
        solved = torch.linalg.solve_triangular(self.cholesky, features.double().T, upper=False)
        return solved.square().sum(0).sqrt()

    def prefpaint_norm(self, features: torch.Tensor) -> torch.Tensor:
        """||V^-1 z||, which PrefPaint's code takes for the uncertainty; features [B, d], returns float64 [B]."""
        return torch.cholesky_solve(features.double().T, self.cholesky).norm(dim=0)


def fit_ridge(
    features: torch.Tensor, scores: torch.Tensor, ridge: float, prior: torch.Tensor | None = None
) -> RidgeHead:
    """psi_hat = psi_0 + (Z'Z + lambda I)^-1 Z'(y - Z psi_0), by Cholesky; PrefPaint eq. 4 where psi_0 = 0.

    Shapes: features [N, d], scores [N], prior [d]: psi_0, towards which the ridge pulls. Where psi_0
    is independent of the scores' noise the theorem holds with S >= ||psi* - psi_0||.
    Raises UserError where V is not positive definite.
    """
    z, y = features.double(), scores.double()
    start = torch.zeros(z.shape[1], dtype=torch.float64) if prior is None else prior.double()
    cholesky = _factorise(z.T @ z + ridge * torch.eye(z.shape[1], dtype=torch.float64))
    weight = start + torch.cholesky_solve((z.T @ (y - z @ start))[:, None], cholesky)[:, 0]
    return RidgeHead(weight=weight, cholesky=cholesky, ridge=ridge)


def update_ridge(head: RidgeHead, features: torch.Tensor, scores: torch.Tensor) -> RidgeHead:
    """The head after further annotations, features [N, d] and scores [N]: as if fitted with them from the start.

    V gains z z' for each row, and psi moves by V^-1 Z'(y - Z psi): recursive least squares. Nothing
    of the earlier annotations is needed but V and psi.
    """
    z, y = features.double(), scores.double()
    cholesky = _factorise(head.cholesky @ head.cholesky.T + z.T @ z)
    step = torch.cholesky_solve((z.T @ (y - z @ head.weight))[:, None], cholesky)[:, 0]
    return RidgeHead(weight=head.weight + step, cholesky=cholesky, ridge=head.ridge)


def _factorise(gram_matrix: torch.Tensor) -> torch.Tensor:
    cholesky, info = torch.linalg.cholesky_ex(gram_matrix)
    if int(info) != 0 or not torch.isfinite(cholesky).all():
        raise UserError("reward: V is not positive definite; raise reward.ridge, or check the features for NaN")
    # In rows, as it is read back from a file: the solver's last bits depend on the order.
    return cholesky.contiguous()


def discount_prompt_effects(values: torch.Tensor, prompts: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Subtract from each row its prompt's share of its prompt's mean.

    Annotations of one prompt err together, by what the features miss of its content; least squares on
    rows so transformed is the estimator of the random-intercept model (Fuller and Battese, 1974),
    and their noise is uncorrelated, as the bound's theorem asks.

    Shapes: values [N] or [N, d]; prompts int64 [N], numbers from 0; shares [P], each in [0, 1].
    """
    counts = torch.bincount(prompts, minlength=len(shares)).to(values)
    sums = values.new_zeros((len(shares), *values.shape[1:])).index_add(0, prompts, values)
    scale = (shares.to(values) / counts.clamp(min=1))[prompts]
    return values - sums[prompts] * (scale[:, None] if values.ndim == 2 else scale)


@dataclass(frozen=True, kw_only=True)
class PromptEffects:
    """Variances of a random-intercept model: of annotations within a prompt, and of what a prompt's share."""

    within: float
    between: float

    def known_share(self, counts: torch.Tensor) -> torch.Tensor:
        """What the sum of n = `counts` [P] residuals tells of a prompt's effect: between / (within + n between)."""
        return self.between / (self.within + counts.double() * self.between).clamp(min=1e-12)

    def shares(self, prompts: torch.Tensor) -> torch.Tensor:
        """The shares for `discount_prompt_effects`: 1 - sqrt(within / (within + n between)), [P]; prompts [N]."""
        counts = torch.bincount(prompts).double()
        total = self.within + counts * self.between
        return 1 - (self.within / total.clamp(min=1e-12)).clamp(max=1.0).sqrt()


def measure_prompt_effects(residuals: torch.Tensor, prompts: torch.Tensor) -> PromptEffects:
    """A one-way analysis of residuals [N] by prompts int64 [N], numbered from 0.

    `between` is 0 where no variance lies between prompts, or none within can be measured.
    """
    residuals = residuals.double()
    counts = torch.bincount(prompts).double()
    degrees = float(len(residuals) - len(counts))
    if degrees < 1 or len(counts) < 2:
        return PromptEffects(within=float(residuals.var(correction=0)), between=0.0)
    means = torch.zeros_like(counts).index_add(0, prompts, residuals) / counts
    within = float((residuals - means[prompts]).square().sum()) / degrees
    spread = float((counts * (means - residuals.mean()).square()).sum()) / (len(counts) - 1)
    typical = float(counts.sum() - counts.square().sum() / counts.sum()) / (len(counts) - 1)
    return PromptEffects(within=within, between=max(0.0, (spread - within) / typical))


def effective_rank(features: torch.Tensor) -> float:
    """exp of the entropy of the normalised eigenvalues of Z'Z (Roy and Vetterli, 2007); features [N, d]."""
    share = spectrum(features)
    return float(torch.exp(-(share * share.clamp(min=1e-300).log()).sum()))


def spectrum(features: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of Z'Z over their sum, largest first: float64 [min(N, d)]; features [N, d]."""
    eigenvalues = torch.linalg.svdvals(features.double()).square()
    return eigenvalues / eigenvalues.sum()


def theorem_multiplier(head: RidgeHead, *, noise: float, delta: float, parameter_norm: float) -> float:
    """The constant factor of the self-normalised bound (Abbasi-Yadkori et al. 2011, theorem 2).

    With probability 1 - delta, for all z: |z'psi_hat - z'psi*| <= multiplier * uncertainty(z).

    Args:
        noise: B, sub-Gaussian constant of the scores' noise.
        delta: probability that the bound fails.
        parameter_norm: S >= ||psi*||, an assumption.
    """
    dimension = len(head.weight)
    log_det_ratio = head.cholesky.diagonal().log().sum() - 0.5 * dimension * math.log(head.ridge)
    spread = noise * math.sqrt(2 * (float(log_det_ratio) - math.log(delta)))
    return spread + math.sqrt(head.ridge) * parameter_norm


def conformal_multiplier(errors: torch.Tensor, uncertainties: torch.Tensor, coverage: float) -> float:
    """The multiplier q with |score - reward| <= q * uncertainty for a new annotation with probability `coverage`.

    Split conformal prediction (arXiv:2107.07511, section 2) on ratios; errors and uncertainties are
    [N], of photographs that fitted nothing. Raises UserError where N is too small for `coverage`.
    """
    require_calibration(len(errors), coverage)
    ratios = (errors.double().abs() / uncertainties.double()).sort().values
    return float(ratios[_conformal_rank(len(ratios), coverage) - 1])


def can_calibrate(count: int, coverage: float) -> bool:
    """Whether that many annotations are enough for a finite multiplier."""
    return _conformal_rank(count, coverage) <= count


def require_calibration(count: int, coverage: float) -> None:
    """Raise UserError that says how many annotations are needed, where `count` cannot calibrate `coverage`."""
    if not can_calibrate(count, coverage):
        needed = math.ceil(coverage / (1 - coverage) - 1e-9)
        raise UserError(
            f"reward: {count} annotations cannot calibrate a coverage of {coverage}; {needed} are needed: "
            "annotate more, or lower reward.coverage"
        )


def _conformal_rank(count: int, coverage: float) -> int:
    """Which of the sorted ratios, from 1, is the multiplier."""
    # The small term keeps 100 x 0.55 from becoming 56.
    return math.ceil((count + 1) * coverage - 1e-9)


def trust_weight(uncertainty: torch.Tensor, median: float, k: float, b: float) -> torch.Tensor:
    """gamma = exp(-k u + b) (PrefPaint eq. 12), with u scaled so that its calibration median is 7.3.

    Shapes: uncertainty [B]; returns [B], not yet divided by its mean.
    """
    return torch.exp(-k * uncertainty * (TRUST_MEDIAN / median) + b)
