"""The words of the page, with the numbers they speak of taken from the results."""
# ruff: noqa: E501 - lines of the page

HEAD = """# What the parts are worth

Measured on the model that ships, by `make experiments` (hours on two cores, after
`make train-mnist`; interrupted, it goes on where it was). Each row of a table is one measurement,
and `python -m benchmarks.experiments EXPERIMENT/ROW` repeats it; where rows were measured together, as
`spaces/models` or `memory/nearest`, the command names them all. The numbers themselves are in
[experiments.json](experiments.json).

Unless a table says otherwise: 500 samples of the full captions of 500 test digits, 20 steps of
dpmpp_2m, guidance 2.4 for 0.3 < sigma <= 5, one seed that had no part in choosing any of this.
"digit", "slant", "stroke": how many samples are as asked. "distance": the Fréchet distance between
their features in the reader and those of the other 9,500 test digits; it is biased, and 500 perfect
samples would have the *floor* on the average, so it is given in multiples of that too (with 500
samples the floor is 2.01). A share near 90% of them has a standard error of 1.3 points.
"""


def percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def floors(row: dict) -> float:
    return row["frechet"] / row["floor"]


def samplers(rows: dict) -> str:
    good = {name: row for name, row in rows.items() if floors(row) < 1.25 * least(rows)}
    first = min(good, key=lambda name: good[name]["evaluations"])
    row = good[first]
    lines = [f"""Every sampler on the same weights, with 5 to 80 evaluations of the denoiser (with and without the
prompt is one), for the adaptive solver with what its tolerance takes. The least distance of the table
is {least(rows):.2f} floors; the cheapest row within a quarter of it is `{first}`, with
{row["evaluations"]} evaluations ({floors(row):.2f} floors, all three as asked {percent(row["all"])})."""]
    if "euler-80" in rows and "probability_flow-0.0001" in rows:
        lines.append(f"""`ddim` without noise is `euler` in other letters, to the last digit. More evaluations need not bring samples
nearer to the data: solved to 1e-4 the ODE ends at {floors(rows["probability_flow-0.0001"]):.2f} floors, further than `heun` with eleven
evaluations, for guidance changes the distribution on purpose, and a better solver follows it more
exactly: `heun` and `dpmpp_2m` move away from the data from 10 evaluations on, and obey better ({percent(rows["heun-10"]["all"])} of `heun-10`,
{percent(rows["heun-80"]["all"])} of `heun-80`, {percent(rows["probability_flow-0.0001"]["all"])} of the solver). `euler` comes to the same place from the other side: its errors take it
further from the data, and from 10 evaluations on do not cost obedience.""")
    if {"euler_maruyama-5", "ddpm-20", "euler_maruyama-20", "predictor_corrector-20"} <= rows.keys():
        lines.append(f"""Fresh noise does not pay in distance. The reverse SDE in plain steps draws noise with 5 and 10 evaluations,
digits with 20 ({floors(rows["euler_maruyama-20"]):.1f} floors), the predictor-corrector needs 40. Of the samplers that add noise
none is nearer to the data than the best that does not. (As asked is most at `{obedient(rows)}`, {percent(rows[obedient(rows)]["all"])}; it is
far from the data.) An adaptive solver is no bargain at a
loose tolerance: with 0.1 it takes 33 evaluations, and nothing else does as badly with so many.""")
    return "\n\n".join(lines)


def obedient(rows: dict) -> str:
    return max(rows, key=lambda name: rows[name]["all"])


def least(rows: dict) -> float:
    return min(floors(row) for row in rows.values())


def guidance(rows: dict) -> str:
    best = min(rows, key=lambda name: floors(rows[name]))
    most = obedient(rows)
    enough = min(0.95, rows[most]["all"])
    near = sorted(rows, key=lambda name: floors(rows[name]))
    near = [name for name in near if rows[name]["all"] >= enough]
    limited, plain = (
        next((f"`{n}` with {floors(rows[n]):.2f} floors" for n in near if kind in n), "none")
        for kind in ("interval", "everywhere")
    )
    rescaled, whole = (pair(rows, name) for name in ("4-rescaled", "4-everywhere"))
    return f"""A scale trades variety for obedience. The distance is least at `{best}`
({floors(rows[best]):.2f} floors, but only {percent(rows[best]["all"])} as asked), obedience is greatest at
`{most}` ({percent(rows[most]["all"])}, at {floors(rows[most]):.2f} floors). Precision says how many samples
lie where real digits do, recall how many real ones lie where samples do: watch recall fall. Guidance in
an interval of noise levels (Kynkäänniemi et al. 2024) buys obedience for less: of the rows with {percent(enough)} as asked or more the
nearest to the data is {limited}, without an interval {plain}. `4-rescaled`, guidance at all levels with what it adds to the spread taken back
(Lin et al. 2024, 0.7), has {rescaled}, without it {whole}."""


def classifier(rows: dict) -> str:
    found = "; ".join(f"{name}: {percent(row['digit'])}" for name, row in rows.items())
    return f"""The model without a prompt, and a classifier of noised latents that says which digit (Dhariwal and
Nichol 2021). Digits as asked, by scale: {found}. Slant and stroke are not asked for, so a third of them is
right by chance. The model without a prompt was trained on a tenth of the images only: row 0 shows how far
its samples are from the data before anybody guides. A scale of 1 takes them further still, 4 and 8 nearer."""


def spaces(rows: dict) -> str:
    lines = []
    if "models" in rows:
        pixel, latent = rows["models"]["pixel"], rows["models"]["latent"]
        throughput = latent["images_a_second"] / pixel["images_a_second"]
        ratio = floors(pixel) / floors(latent)
        lines.append(f"""The same U-Net on pixels (14x14 squares of 2x2) and on latents (8x8), with as many parameters and the
same time in training (steps times seconds a step, measured in one run; the autoencoder's own minute comes
on top for latents). Latents give {throughput:.1f} times the images a second; the distance of pixels is {ratio:.1f} times that of
latents. Digit, slant and stroke are as asked in {pixel["all"]:.1%} of the samples of pixels and {latent["all"]:.1%} of latents.
Rombach et al. 2022 claim at least 2.7 times the throughput and 1.6 times the better distance, for images
of 256x256 pixels: of 28x28 there is less to leave out.""")
    if "likelihood" in rows:
        row = rows["likelihood"]
        lines.append(f"""What only pixels have is a likelihood: {row["bits"]:.3f} bits per dimension (standard error
{row["standard_error"]:.3f}) for {row["digits"]} test digits, by the ODE with one dequantisation and one draw
of signs each; {row["histograms"]:.3f} by the histogram of each pixel.""")
    return "\n\n".join(lines)


def parts(rows: dict) -> str:
    lines = ["""`shipped` is the whole training, 1,800 steps; `no-average` the same with the last weights in place of
their average. All others are trainings of 600 steps, one each, `third` with nothing changed: compare with
that one. Two trainings that differ by less than 3 points or 0.3 floors cannot be told apart here."""]
    if {"shipped", "no-average"} <= rows.keys():
        lines.append(f"""- Averaged weights: {pair(rows, "shipped")}; last ones: {pair(rows, "no-average")}. As the learning rate falls
  to a twentieth, the last weights hardly move, and the average has nothing left to do.""")
    if {"third", "no-dropping"} <= rows.keys():
        lines.append(f"""- Captions never dropped: {pair(rows, "no-dropping")}, against {pair(rows, "third")}. The model without a prompt is
  then untrained, and guidance pushes away from what it happens to say.""")
    if {"third", "no-perceptual"} <= rows.keys():
        lines.append(f"""- No perceptual loss: {pair(rows, "no-perceptual")}. Of what it is for, sharp large images, 28x28 digits have
  little.""")
    if {"third", "kl-0", "kl-1e-06", "kl-0.1"} <= rows.keys():
        lines.append(f"""- The weight of the KL term, 1e-3 in `third`: with none {pair(rows, "kl-0")}, with 1e-6 {pair(rows, "kl-1e-06")},
  with 1e-1 {pair(rows, "kl-0.1")}. A heavy one costs
  the autoencoder detail. The weight that ships is not the best one here: with less, more is as asked after
  a third of the training; in distance they cannot be told apart. It was chosen earlier, and not again.""")
    if {"third", "one-token"} <= rows.keys():
        lines.append(f"""- Captions of one token, like "seven": slant and stroke cannot be asked for, and are right by chance; digits
  are as asked in {percent(rows["one-token"]["digit"])}, and samples lie further from the data ({floors(rows["one-token"]):.1f} floors).""")
    if {"third", "no-self-attention"} <= rows.keys():
        lines.append(f"""- No self-attention: {pair(rows, "no-self-attention")}.""")
    return "\n\n".join([lines[0], "\n".join(lines[1:])]).rstrip()


def pair(rows: dict, name: str) -> str:
    return f"{percent(rows[name]['all'])} as asked at {floors(rows[name]):.1f} floors"


def composition(rows: dict) -> str:
    held, rest = (rows["held-out"][name] for name in ("held_out", "rest"))
    return f"""The nine combinations of digit, stroke and slant that training never saw, beside the 81 others: all
three as asked {percent(held["all"])} and {percent(rest["all"])}. The parts of a caption are understood one
by one."""


def edits(rows: dict) -> str:
    lines = []
    if "inpaint" in rows:
        row = rows["inpaint"]
        kept = "keeps" if row["kept"] else "does not keep"
        lines.append(f"""`inpaint` fills the lower half of {row["samples"]} test digits, prompted with their own captions:
{percent(row["digit"])} are read as that digit. It {kept} the upper half to the pixel.""")
    if "slant-0.6" in rows:
        row = rows["slant-0.6"]
        lines.append(f"""`slant-STRENGTH` turns {row["samples"]} leaning digits the other way by image to image: at 0.6,
{percent(row["slant"])} lean as asked and {percent(row["digit"])} are the same digit still. Below, too little
noise is added to hide the old slant; above, digits stay, for the prompt names them. How much of the old
hand is left is not measured.""")
    if {"inversion-heun-50", "inversion-euler-50"} <= rows.keys():
        heun, euler = (rows[f"inversion-{name}-50"]["relative_error"] for name in ("heun", "euler"))
        lines.append(f"""`inversion-METHOD-STEPS` takes latents to noise and back, without guidance: with 50 steps the
relative error is {heun:.4f} with Heun's method and {euler:.3f} with Euler's (DDIM).""")
    return "\n\n".join(lines)


def words(rows: dict) -> str:
    both = "; ".join(
        f"{name}: {row['digit']:.3f} and {row['a']:.3f}, better by {row['digit_minus_a']:.3f} "
        f"(standard error {row['standard_error']:.4f})" for name, row in rows.items()
    )  # fmt: skip
    return f"""Cross-attention as a map for each word (Tang et al. 2022), and its overlap with the ink
(intersection over union, the map cut at 0.4 of its range), 200 samples of "a bold ... leaning left". The
digit's word and "a" have: {both}. Of the words of slant, "left" covers the ink as well
as the digit's or better, "leaning" less than "a" does. 8x8 latents make coarse maps, and no overlap is large."""


def memory(rows: dict) -> str:
    samples, test = (rows["nearest"][name] for name in ("samples", "test"))
    nearer = 1 - samples["quantile_50"] / test["quantile_50"]
    return f"""The distance to the nearest training digit, in pixels; a copy would be at 0. The nearest hundredth of
the samples has {samples["quantile_1"]:.2f}, of unseen test digits {test["quantile_1"]:.2f}; the median sample is nearer by {nearer:.0%}
({samples["quantile_50"]:.2f} and {test["quantile_50"]:.2f}): more usual than real digits, and not copied."""


WORDS = {
    "samplers": ("Samplers", samplers),
    "guidance": ("Guidance", guidance),
    "classifier": ("Guidance by a classifier", classifier),
    "spaces": ("Latents against pixels", spaces),
    "parts": ("What each part is worth", parts),
    "composition": ("Combinations never seen", composition),
    "editing": ("Editing", edits),
    "words": ("Which word drew what", words),
    "memory": ("Is it remembering?", memory),
}

# What stands for a figure, and what stands under it.
FIGURES = {
    "samplers": (
        "Two plots against evaluations, ten lines each: distances that fall, shares as asked that rise",
        """A line a sampler. Left: how far 500 samples are from the data, lower is better; dotted, 1 floor, which
perfect samples would have. Right: the share that is as asked. `ddim` without noise lies on `euler` and hides
it; `probability_flow` chooses its steps, and has a point for each tolerance, from 0.1 at the left to 1e-4.""",
    ),
    "guidance": (
        "Two curves, obedience over distance: steep at first, then level, numbered by scale",
        """A point a scale, from 1 (no guidance) to 8; blue's numbers are above, orange's below. Further up, more
samples are as asked; further left, they are nearer to the data. At first obedience rises steeply, beyond a
scale of 3 almost only the distance does.""",
    ),
    "space_pixel": (
        "Three rows of the digits 0 to 9, thin, medium and bold, some with ragged strokes",
        """Drawn by the model of pixels: at the left the prompt, the digit's word in place of the dots.""",
    ),
    "space_latent": (
        "Three rows of the digits 0 to 9, thin, medium and bold, smooth but for a broken thin seven",
        """The same prompts, drawn by the model of latents with as many parameters.""",
    ),
    "inpaint": (
        "Three rows of ten digits: whole, only the upper half above grey, whole again",
        """Ten of the test digits. Where the upper half leaves it open, the lower half is in another hand:
the second digit from the right is a triangle above, and was filled to a round zero.""",
    ),
    "slant": (
        "Ten test digits, and below each the same digit leaning the other way",
        """Ten of the leaning test digits, and below them what image to image at strength 0.6 made of each, asked to
lean the other way with the same stroke.""",
    ),
    "words": (
        "Three digits, each followed by five copies under glowing maps, one for each word of its prompt",
        """Each row is a sample (left), then the same picture under the map of each word of its prompt. The colour
says how much the picture's places attend to the word: black least, then red and yellow, white most, over the
range of that map alone; so colours compare places under one word, not words. The strokes shine through.""",
    ),
    "memory": (
        "Two rows of the digits 0 to 9, alike in pairs but not equal",
        """Top: of the 500 samples the one of each digit that is nearest to a training digit. Below: that training digit.
These are the most suspicious, and each differs from its neighbour in the course or weight of its strokes.""",
    ),
}
