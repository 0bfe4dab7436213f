"""Ridge head and the upper bound on its error (PrefPaint, arXiv:2410.21966, section 3).

Notation: z in R^d are the features of an image, y its score, Z [N, d] the features of N annotations,
V = Z'Z + lambda I, psi_hat the head. The reward is z'psi_hat; its uncertainty is sqrt(z' V^-1 z).
"""

import math
from dataclasses import dataclass

import torch

from rlhf.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RidgeHead:
    """Last layer psi_hat, in closed form (PrefPaint eq. 4), and V = Z'Z + lambda I as its Cholesky factor."""

    weight: torch.Tensor
    """float64 [d]: psi_hat."""
    cholesky: torch.Tensor
    """float64 [d, d], lower triangular L with L L' = V."""
    ridge: float
    """lambda."""

    def reward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the reward z' psi_hat: float64 [B], for features [B, d]."""
        return features.double() @ self.weight

    def uncertainty(self, features: torch.Tensor) -> torch.Tensor:
        """Returns sqrt(z' V^-1 z) (PrefPaint eq. 7, as its proof needs it): float64 [B], for features [B, d]."""
        solved = torch.linalg.solve_triangular(self.cholesky, features.double().T, upper=False)
        return solved.square().sum(0).sqrt()

    def released_norm(self, features: torch.Tensor) -> torch.Tensor:
        """Returns ||V^-1 z||, which PrefPaint's code uses as uncertainty: float64 [B], for features [B, d]."""
        return torch.cholesky_solve(features.double().T, self.cholesky).norm(dim=0)


def fit_ridge(
    features: torch.Tensor, scores: torch.Tensor, ridge: float, prior: torch.Tensor | None = None
) -> RidgeHead:
    """Fits psi_hat = psi_0 + (Z'Z + lambda I)^-1 Z'(y - Z psi_0) by Cholesky; PrefPaint eq. 4 has psi_0 = 0.

    Shapes: features Z [N, d]; scores y [N]; prior psi_0 [d], to which the ridge pulls (default: 0). If psi_0 is
    independent of the scores' noise, the theorem holds with S >= ||psi* - psi_0||.

    Raises UserError if V is not positive definite.
    """
    z, y = features.double(), scores.double()
    start = torch.zeros(z.shape[1], dtype=torch.float64) if prior is None else prior.double()
    cholesky = _factorise(z.T @ z + ridge * torch.eye(z.shape[1], dtype=torch.float64))
    weight = start + torch.cholesky_solve((z.T @ (y - z @ start))[:, None], cholesky)[:, 0]
    return RidgeHead(weight=weight, cholesky=cholesky, ridge=ridge)


def update_ridge(head: RidgeHead, features: torch.Tensor, scores: torch.Tensor) -> RidgeHead:
    """Returns the head after further annotations, features [N, d] and scores [N].

    Recursive least squares: V gains z z' for each row, and psi moves by V^-1 Z'(y - Z psi). The result equals a fit
    of all annotations at once, and needs only V and psi of the earlier ones.
    """
    z, y = features.double(), scores.double()
    cholesky = _factorise(head.cholesky @ head.cholesky.T + z.T @ z)
    step = torch.cholesky_solve((z.T @ (y - z @ head.weight))[:, None], cholesky)[:, 0]
    return RidgeHead(weight=head.weight + step, cholesky=cholesky, ridge=head.ridge)


def _factorise(gram_matrix: torch.Tensor) -> torch.Tensor:
    cholesky, info = torch.linalg.cholesky_ex(gram_matrix)
    if int(info) != 0 or not torch.isfinite(cholesky).all():
        raise UserError("reward: V is not positive definite; raise reward.ridge, or check the features for NaN")
    # Row-major, as a file gives it back: the solver's last bits depend on the memory layout.
    return cholesky.contiguous()


def discount_prompt_effects(values: torch.Tensor, prompts: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Subtracts from each row a share of its prompt's mean.

    Annotations of one prompt share an error, since the features miss part of the prompt's content. Least squares
    on the transformed rows is the estimator of the random-intercept model (Fuller and Battese, 1974), and the
    noise of these rows is uncorrelated, as the bound's theorem requires.

    Shapes: values [N] or [N, d]; prompts int64 [N], numbers from 0; shares [P], each in [0, 1].
    """
    counts = torch.bincount(prompts, minlength=len(shares)).to(values)
    sums = values.new_zeros((len(shares), *values.shape[1:])).index_add(0, prompts, values)
    scale = (shares.to(values) / counts.clamp(min=1))[prompts]
    return values - sums[prompts] * (scale[:, None] if values.ndim == 2 else scale)


@dataclass(frozen=True, kw_only=True)
class PromptEffects:
    """Variances of a random-intercept model."""

    within: float
    """Variance of annotations within a prompt."""
    between: float
    """Variance of the error that a prompt's annotations share."""

    def known_share(self, counts: torch.Tensor) -> torch.Tensor:
        """Returns between / (within + n between) [P]: the best linear estimate of a prompt's effect per unit of the sum
        of its n = `counts` [P] residuals."""
        return self.between / (self.within + counts.double() * self.between).clamp(min=1e-12)

    def shares(self, prompts: torch.Tensor) -> torch.Tensor:
        """Returns shares for `discount_prompt_effects`: 1 - sqrt(within / (within + n between)) [P]; prompts [N]."""
        counts = torch.bincount(prompts).double()
        total = self.within + counts * self.between
        return 1 - (self.within / total.clamp(min=1e-12)).clamp(max=1.0).sqrt()


def measure_prompt_effects(residuals: torch.Tensor, prompts: torch.Tensor) -> PromptEffects:
    """Estimates both variances by one-way analysis of residuals [N] by prompts int64 [N], numbered from 0.

    `between` is 0 if the prompts do not differ, or if no prompt has two annotations.
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
    """Returns exp of the entropy of the normalised eigenvalues of Z'Z (Roy and Vetterli, 2007); features [N, d]."""
    share = spectrum(features)
    return float(torch.exp(-(share * share.clamp(min=1e-300).log()).sum()))


def spectrum(features: torch.Tensor) -> torch.Tensor:
    """Returns the eigenvalues of Z'Z over their sum, largest first: float64 [min(N, d)], for features [N, d]."""
    eigenvalues = torch.linalg.svdvals(features.double()).square()
    return eigenvalues / eigenvalues.sum()


def theorem_multiplier(head: RidgeHead, *, noise: float, delta: float, parameter_norm: float) -> float:
    """Returns the factor of the self-normalised bound (Abbasi-Yadkori et al. 2011, theorem 2).

    With probability 1 - delta, for all z: |z'psi_hat - z'psi*| <= factor * uncertainty(z), where
    factor = B sqrt(2 log(det(V)^(1/2) / (lambda^(d/2) delta))) + sqrt(lambda) S.

    Args:
        noise: B, sub-Gaussian constant of the scores' noise.
        delta: probability that the bound fails.
        parameter_norm: S >= ||psi*||, assumed.
    """
    dimension = len(head.weight)
    log_det_ratio = head.cholesky.diagonal().log().sum() - 0.5 * dimension * math.log(head.ridge)
    spread = noise * math.sqrt(2 * (float(log_det_ratio) - math.log(delta)))
    return spread + math.sqrt(head.ridge) * parameter_norm


def conformal_multiplier(errors: torch.Tensor, uncertainties: torch.Tensor, coverage: float) -> float:
    """Returns q such that |score - reward| <= q * uncertainty for a new annotation with probability `coverage`.

    Split conformal prediction (arXiv:2107.07511, section 2) on the ratios of errors [N] and uncertainties [N];
    q is the ceil((N + 1) coverage)-th smallest. The rows come from photographs that fitted nothing.

    Raises UserError if N is too small for `coverage`.
    """
    require_calibration(len(errors), coverage)
    ratios = (errors.double().abs() / uncertainties.double()).sort().values
    return float(ratios[_conformal_rank(len(ratios), coverage) - 1])


def can_calibrate(count: int, coverage: float) -> bool:
    """Returns whether `count` annotations are enough for a finite multiplier."""
    return _conformal_rank(count, coverage) <= count


def require_calibration(count: int, coverage: float) -> None:
    """Raises UserError with the number of annotations needed if `count` of them cannot calibrate `coverage`."""
    if not can_calibrate(count, coverage):
        needed = math.ceil(coverage / (1 - coverage) - 1e-9)
        raise UserError(
            f"reward: {count} annotations cannot calibrate a coverage of {coverage}; {needed} are needed: "
            "annotate more, or lower reward.coverage"
        )


def _conformal_rank(count: int, coverage: float) -> int:
    """Returns the rank, from 1, of the multiplier among the sorted ratios."""
    # The small term keeps 100 x 0.55 from being rounded up to 56.
    return math.ceil((count + 1) * coverage - 1e-9)
