"""The figures, as tables in markdown."""


class Samples:
    """Numbers in order; median and quartiles are values that were measured, as the program's own are."""

    def __init__(self, values):
        self.values = sorted(values)

    def at(self, part, parts):
        return self.values[min(len(self.values) * part // parts, len(self.values) - 1)] if self.values else float("nan")

    @property
    def median(self):
        return self.at(2, 4)

    @property
    def spread(self):
        return self.at(3, 4) - self.at(1, 4)

    def text(self, digits=3):
        return f"{self.median:.{digits}f} ({self.spread:.{digits}f})"


def seconds(runs):
    """Of all steps that count, of all rounds."""
    return Samples(step["seconds"] for run in runs for step in run["steps"][1:])


def of(runs, key):
    """What a run says of itself."""
    return Samples(run[key] for run in runs)


def table(header, rows):
    print("| " + " | ".join(header) + " |")
    print("|" + " --- |" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def ratio(above, below, digits=1):
    """Of medians over all rounds; then the least and the largest of the rounds' own."""
    whole = seconds(above).median / seconds(below).median
    rounds = sorted(seconds([one]).median / seconds([other]).median for one, other in zip(above, below))
    span = f" ({rounds[0]:.{digits}f} to {rounds[-1]:.{digits}f})" if len(rounds) > 1 else ""
    return f"{whole:.{digits}f}{span}"


def print_times(inputs, options):
    rows = []
    for row in inputs:
        reference, ours, threaded = (row.runs[name] for name in ("reference", "circuitlab", "threaded"))
        twice = [seconds(threaded).text(), ratio(ours, threaded, 2)] if threaded else ["-", "-"]
        dense = [seconds(row.runs["dense"]).text()] if options.dense else []
        rows.append([row.title, seconds(reference).text(), seconds(ours).text(), ratio(reference, ours), *twice, *dense])
    more = 2 * options.threads
    header = ["input", "dense PyTorch, s", "circuitlab, s", "times faster", f"{more} threads, s", f"{options.threads} to {more} threads"]
    table(header + ["circuitlab --dense, s"] * options.dense, rows)


def print_floors(inputs):
    rows = []
    for row in inputs:
        ours = row.runs["circuitlab"]
        keys = (("encoder_product_seconds", 3), ("copy_gb_per_s", 1), ("floor_seconds", 3), ("to_floor", 2), ("to_encoder_product", 2))
        rows.append([row.title, *(of(ours, key).text(digits) for key, digits in keys)])
    table(["input", "encoder's products, s", "copy, GB/s", "floor, s", "step / floor", "step / encoder's products"], rows)


def print_memory(inputs):
    rows = []
    for row in inputs:
        layers, _, d_features, batch, _ = row.sizes
        needed, peak = 16 * row.parameters / 1e6, {name: values.get("own", 0) / 1e6 for name, values in row.peaks.items()}
        if not peak.get("circuitlab"):
            continue
        above = peak["circuitlab"] - needed
        block = 4e-6 * batch * d_features
        figures = [row.parameters / 1e6, needed, peak["circuitlab"], above, block, block * layers, peak["reference"]]
        shown = [f"{figure:.1f}" for figure in figures]
        rows.append([row.title, *shown[:4], f"{100 * above / needed:.1f} %", *shown[4:]])
    header = ["input", "parameters, M", "16 bytes each, MB", "peak, MB", "above, MB", "above, share", "h of a layer, MB", "of all, MB"]
    if rows:
        table([*header, "dense PyTorch's peak, MB"], rows)
    else:
        print("Not measured: this system has no /proc.\n")


def stage_text(figures):
    work = [f"{figures[key]:.0f} {unit}" for key, unit in (("gflop_per_s", "GFLOP/s"), ("gb_per_s", "GB/s")) if figures[key] >= 0.5]
    return ", ".join([f"{1e3 * figures['seconds']:.1f} ms", *work])


def print_stages(inputs):
    # The run in the middle, so that a column's stages are of the same steps.
    def middle(row):
        runs = sorted(row.runs["circuitlab"], key=lambda run: run["median_seconds"])
        return {stage["stage"]: stage for stage in runs[len(runs) // 2]["stages"]}

    columns = [middle(row) for row in inputs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(stage_text(column[name]) if name in column else "-" for column in columns)] for name in names]
    table(["stage", *(row.title for row in inputs)], rows)


TERMS = (("mse", 4), ("sparsity", 6), ("preact", 6), ("l0", 3))


def relative(ours, theirs):
    return abs(ours - theirs) / max(abs(theirs), 1e-300) if ours != theirs else 0.0


def print_losses(inputs):
    largest, rows = [], []
    for row in inputs:
        # Of all rounds: the results of the same program may differ from run to run where its sums depend on threads.
        pairs = [(ours["steps"], theirs["steps"]) for ours, theirs in zip(row.runs["circuitlab"], row.runs["reference"])]
        worst = [max(relative(a[key], b[key]) for ours, theirs in pairs for a, b in zip(ours, theirs)) for key, _ in TERMS]
        largest.append([row.title, *(f"{value:.1e}" for value in worst)])
        for index, (ours, theirs) in enumerate(zip(*pairs[0])):
            cells = [f"{theirs[key]:.{digits}f}, {ours[key]:.{digits}f}" for key, digits in TERMS]
            rows.append([row.title, str(index), *cells])
    print("Largest relative difference at any step of any round:\n")
    table(["input", *(key for key, _ in TERMS)], largest)
    print("Dense PyTorch, circuitlab, in the first round:\n")
    table(["input", "step", *(key for key, _ in TERMS)], rows)


def print_all(inputs, options, about):
    threads, rounds = (f"{count} {what}{'s' * (count > 1)}" for count, what in ((options.threads, "thread"), (options.rounds, "round")))
    print(f"{threads}, {rounds} of {options.steps} steps that count; medians, in parentheses the interquartile range")
    print("(of ratios the least and the largest of the rounds).\n")
    print("\n".join(f"- {name}: {fact}" for name, fact in about.items()), end="\n\n")
    print("## Time of a step\n")
    print_times(inputs, options)
    print("## Against the floor\n")
    print_floors(inputs)
    print("## Memory\n")
    print_memory(inputs)
    print("## Stages\n")
    print_stages(inputs)
    print("## Losses\n")
    print_losses(inputs)
