"""How data become noise: the processes of Song et al. 2021, and rectified flow, as one family.

All of them scale the data down and add white noise, each after its own clock t:

    x(t) = s(t) (x0 + sigma(t) n)

So x / s is data noised to the level sigma, which is all that D(x, sigma, cond) wants to know: a D
trained under one process serves every other. The same in differential form, w a Wiener process:

    dx = f(t) x dt + g(t) dw        f = s' / s        g^2 = s^2 (sigma^2)'

    process          s(t)              sigma(t)                   f                g^2
    VE               1                 a (b / a)^t                0                2 sigma^2 ln(b/a)
    VP               e^(-B/2)          sqrt(e^B - 1)              -beta / 2        beta
    SubVP            e^(-B/2)          2 sinh(B / 2)              -beta / 2        beta (1 - e^-2B)
    CosineVP         cos u / cos u0    sqrt(cos^2 u0/cos^2 u - 1) -u' tan u        2 u' tan u
    RectifiedFlow    1 - t             t / (1 - t)                -1 / (1 - t)     2 t / (1 - t)

    beta = beta_min + t (beta_max - beta_min), B its integral from 0;  u = (t + h) / (1 + h) pi / 2

Run backwards, the densities p_t of x(t) are followed by an SDE and by an ODE (Anderson 1982,
"Reverse-time diffusion equation models"; Song et al. 2021, eq. 6 and 13):

    dx = (f x - g^2 grad log p_t(x)) dt + g dw          dx = (f x - 1/2 g^2 grad log p_t(x)) dt

Times are numbers, or arrays (N,) with one for each row of x (N, ...); what comes back is of the
same kind, so that with a number no GPU is asked and float32 stays float32.
"""

import math
from numbers import Real

import numpy as np

from ..backend import array_module
from ..checks import number, shown, whole
from ..function import raw


class Process:
    """What the five have in common. Each has s, sigma, f, g_squared, and `time`, sigma's inverse.

    Attributes:
        t_min, t_max: the times between which it is run: where noise is too little to be seen, and
            where it is all there is
    """

    t_min: float
    t_max: float

    def s(self, t):
        """The scale of the data."""
        raise NotImplementedError

    def sigma(self, t):
        """The noise level, relative to the data as x / s shows them."""
        raise NotImplementedError

    def time(self, sigma):
        """The time at which the noise level is `sigma`."""
        raise NotImplementedError

    def f(self, t):
        """The rate at which the data's scale grows, s' / s."""
        raise NotImplementedError

    def g_squared(self, t):
        """The rate at which noise comes in, as a variance: s^2 (sigma^2)'."""
        raise NotImplementedError

    def drift(self, x, t):
        """f(t) x, the SDE's drift. Raises ValueError for times outside the process's."""
        self.checked_times(t)
        return along(self.f(t), x) * x

    def diffusion(self, t):
        """g(t), the SDE's diffusion coefficient. ValueError for times outside the process's."""
        self.checked_times(t)
        return functions(t).sqrt(self.g_squared(t))

    def kernel(self, t, start=None):
        """(scale, deviation): x(t) given x(start) is N(scale x(start), deviation^2 I).

            scale = s(t) / s(start)     deviation^2 = s(t)^2 (sigma(t)^2 - sigma(start)^2)

        Without `start` it is given the clean x0: s(t) and s(t) sigma(t). (Song et al. 2021, eq. 29)
        Raises ValueError for times outside the process's, or a start that is later than t.
        """
        self.checked_times(t)
        if start is None:
            return self.s(t), self.s(t) * self.sigma(t)
        self.checked_times(start)
        if array_module(t) is array_module(start) is np and np.any(np.asarray(start) > t):
            raise ValueError(f"a kernel leads forwards, not from {shown(start)} to {shown(t)}")
        grown = self.sigma(t) ** 2 - self.sigma(start) ** 2
        return self.s(t) / self.s(start), self.s(t) * functions(grown).sqrt(grown)

    def checked_times(self, t) -> None:
        """ValueError for times outside t_min ... t_max, but for rounding. Those on a GPU are taken
        as they are: looking at them would make the host wait."""
        slack = 1e-6 * (self.t_max - self.t_min)
        if array_module(t) is np:
            inside = (np.asarray(t) >= self.t_min - slack) & (np.asarray(t) <= self.t_max + slack)
            if not inside.all():
                raise ValueError(f"{type(self).__name__} has times {self.t_min:g} ... "
                                 f"{self.t_max:g}, got {shown(t)}")  # fmt: skip

    def perturb(self, x0, t, noise):
        """x(t) made of clean data and white noise of the same shape."""
        scale, deviation = self.kernel(t)
        return along(scale, x0) * x0 + along(deviation, x0) * noise

    def simulate(self, x, start: float, end: float, steps: int, rng: np.random.Generator):
        """x(start) -> x(end) by the forward SDE, in equal steps of Euler and Maruyama:

            x + f(t) x dt + g(t) sqrt(dt) z

        The slow way to what `kernel` says at once. Raises ValueError for times outside the
        process's, or in the wrong order, and for less than one step.
        """
        if not self.t_min <= number("start", start) < number("end", end) <= self.t_max:
            raise ValueError(
                f"times must rise within {self.t_min:g} ... {self.t_max:g}, got {start} and {end}"
            )
        whole("steps", steps, at_least=1)
        xp, dt = array_module(x), (end - start) / steps
        for i in range(steps):
            t = start + i * dt
            z = xp.asarray(rng.standard_normal(x.shape), dtype=x.dtype)
            x = x + dt * self.drift(x, t) + along(math.sqrt(dt) * self.diffusion(t), x) * z
        return x

    @property
    def prior_deviation(self) -> float:
        """Standard deviation of the white noise that x(t_max) is taken for, s sigma."""
        return self.kernel(self.t_max)[1]

    def prior(self, shape, rng: np.random.Generator) -> np.ndarray:
        """Noise to start sampling from, at t_max, float64."""
        return self.prior_deviation * rng.standard_normal(shape)

    def prior_log_density(self, x):
        """log N(x; 0, prior_deviation^2 I) in nats, of an array (N, ...); (N,)."""
        z = x.reshape(len(x), -1) / self.prior_deviation
        constant = z.shape[1] * math.log(2 * math.pi * self.prior_deviation**2)
        return -0.5 * ((z * z).sum(axis=1) + constant)

    def score(self, D, x, t, cond=None):
        """grad log p_t(x) = (s D(x / s; sigma, cond) - x) / (s sigma)^2."""
        self.checked_times(t)
        s, sigma = self.s(t), self.sigma(t)
        scale = along(s, x)
        return (D(x / scale, sigma, cond) * scale - x) / along(s * sigma, x) ** 2

    def reverse_drift(self, D, x, t, cond=None):
        """f x - g^2 grad log p_t(x): the drift of the SDE that leads from noise to data."""
        return self.drift(x, t) - along(self.g_squared(t), x) * self.score(D, x, t, cond)

    def velocity(self, D, x, t, cond=None):
        """dx/dt = f x - 1/2 g^2 grad log p_t(x) of the probability-flow ODE."""
        return self.drift(x, t) - along(self.g_squared(t) / 2, x) * self.score(D, x, t, cond)


class VE(Process):
    """Variance exploding: noise of geometrically growing size is added, the data stay as they are.

    Song et al. 2021, appendix C, eq. 30 (the limit of SMLD's levels).
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0):
        checked_levels(sigma_min, sigma_max)
        self.sigma_min, self.log_ratio = sigma_min, math.log(sigma_max / sigma_min)
        self.t_min, self.t_max = 0.0, 1.0

    def s(self, t):
        return 0.0 * t + 1.0

    def sigma(self, t):
        return self.sigma_min * functions(t).exp(self.log_ratio * t)

    def time(self, sigma):
        return functions(sigma).log(sigma / self.sigma_min) / self.log_ratio

    def f(self, t):
        return 0.0 * t

    def g_squared(self, t):
        return 2 * self.log_ratio * self.sigma(t) ** 2


class VP(Process):
    """Variance preserving: what noise brings in, scaling takes away; DDPM in continuous time.

    Song et al. 2021, appendix C, eq. 32 and 33 (Ho et al. 2020 with 1,000 steps: the same betas,
    times 1,000).
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, sigma_min: float = 0.002):
        number("beta_max", beta_max, 0, 600)  # e^600 is near the largest number there is
        if not 0 <= number("beta_min", beta_min) <= beta_max or beta_max == 0:
            raise ValueError(f"need 0 <= beta_min <= beta_max, not 0: got {beta_min}, {beta_max}")
        self.beta_min, self.slope, self.t_max = beta_min, beta_max - beta_min, 1.0
        checked_levels(sigma_min, self.sigma(1.0))
        self.t_min = self.time(sigma_min)

    def beta(self, t):
        return self.beta_min + self.slope * t

    def integral(self, t):
        """B(t), beta's integral from 0 to t."""
        return (self.beta_min + self.slope / 2 * t) * t

    def s(self, t):
        return functions(t).exp(self.integral(t) / -2)

    def sigma(self, t):
        m = functions(t)
        return m.sqrt(m.expm1(self.integral(t)))

    def time(self, sigma):
        return self._time_of(functions(sigma).log1p(sigma**2))

    def _time_of(self, B):
        """B's inverse; the solution of the quadratic equation in the form that cancels nothing."""
        root = functions(B).sqrt(self.beta_min**2 + 2 * self.slope * B)
        return 2 * B / (self.beta_min + root)

    def f(self, t):
        return self.beta(t) / -2

    def g_squared(self, t):
        return self.beta(t)


class SubVP(VP):
    """VP with less noise on the way: deviation 1 - e^-B where VP has its square root.

    Song et al. 2021, appendix C, eq. 33 and 34; made for likelihoods.
    """

    def sigma(self, t):
        return 2 * functions(t).sinh(self.integral(t) / 2)

    def time(self, sigma):
        m, y = functions(sigma), sigma / 2
        # 2 arsinh(y), by a logarithm that is exact for small y too
        return self._time_of(2 * m.log1p(y + y**2 / (1 + m.sqrt(1 + y**2))))

    def g_squared(self, t):
        return -self.beta(t) * functions(t).expm1(-2 * self.integral(t))


class CosineVP(Process):
    """Variance preserving, with data fading as a cosine does: they are lost later.

    Nichol and Dhariwal 2021, "Improved denoising diffusion probabilistic models", eq. 17, where the
    offset h keeps the first steps from being too small.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, h: float = 0.008):
        checked_levels(sigma_min, sigma_max)
        number("h", h, 0, 1)
        self.h, self.rate = h, math.pi / 2 / (1 + h)
        self.u0 = h * self.rate
        self.t_min, self.t_max = self.time(sigma_min), self.time(sigma_max)

    def u(self, t):
        return (t + self.h) * self.rate

    def s(self, t):
        return functions(t).cos(self.u(t)) / math.cos(self.u0)

    def sigma(self, t):
        m, u = functions(t), self.u(t)
        # cos^2 u0 - cos^2 u = sin(u - u0) sin(u + u0)
        return m.sqrt(m.sin(t * self.rate) * m.sin(u + self.u0)) / m.cos(u)

    def time(self, sigma):
        m = functions(sigma)
        arctan = m.atan if m is math else m.arctan
        u = arctan(m.sqrt(sigma**2 + math.sin(self.u0) ** 2) / math.cos(self.u0))
        return u / self.rate - self.h

    def f(self, t):
        return -self.rate * functions(t).tan(self.u(t))

    def g_squared(self, t):
        return -2 * self.f(t)


class RectifiedFlow(Process):
    """Straight lines from data to noise, x = (1 - t) x0 + t n.

    Liu et al. 2022, "Flow straight and fast"; Lipman et al. 2022, "Flow matching for generative
    modeling", with t = 0 at the data.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0):
        checked_levels(sigma_min, sigma_max)
        self.t_min, self.t_max = self.time(sigma_min), self.time(sigma_max)

    def s(self, t):
        return 1 - t

    def sigma(self, t):
        return t / (1 - t)

    def time(self, sigma):
        return sigma / (1 + sigma)

    def f(self, t):
        return -1 / (1 - t)

    def g_squared(self, t):
        return 2 * t / (1 - t)


PROCESSES = {
    "ve": VE, "vp": VP, "subvp": SubVP, "cosine": CosineVP, "flow": RectifiedFlow
}  # fmt: skip


def functions(t):
    """Whose exp, log, sqrt, ... t wants: numbers stay numbers, arrays stay where they are."""
    return math if isinstance(t, Real) else array_module(t)


def along(value, x):
    """A number as it is; an array (N,) with axes and dtype to multiply x (N, ...) with."""
    if getattr(value, "ndim", 0) == 0:
        return float(value) if isinstance(value, np.generic) else value
    x = raw(x)
    if value.shape != (len(x),):
        raise ValueError(f"times have shape {value.shape}: give a number, or ({len(x)},) of them")
    return value.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def checked_time(process: Process, sigma):
    """`process.time(sigma)`; ValueError for levels outside its own, which no model of it knows.

    Values on a GPU are taken as they are: looking at them would make the host wait.
    """
    least, most = float(process.sigma(process.t_min)), float(process.sigma(process.t_max))
    if array_module(sigma) is np:
        given, slack = np.asarray(sigma), 1 + 1e-6
        if not np.all((given >= least / slack) & (given <= most * slack)):
            raise ValueError(f"{type(process).__name__} has noise levels {least:g} ... {most:g}: "
                             f"it has no time for {shown(sigma)}")  # fmt: skip
    return process.time(sigma)


def checked_process(process) -> Process:
    """The process, if it is one; ValueError otherwise."""
    if not isinstance(process, Process) or type(process) is Process:
        names = ", ".join(f"{kind.__name__}()" for kind in PROCESSES.values())
        raise ValueError(f"process must be one of {names}, not {shown(process)}")
    return process


def checked_levels(sigma_min: float, sigma_max: float) -> None:
    """ValueError unless 0 < sigma_min < sigma_max, both finite."""
    levels = number("sigma_min", sigma_min), number("sigma_max", sigma_max)
    if not 0 < levels[0] < levels[1]:
        raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
