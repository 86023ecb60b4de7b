"""What docs/results.md says that does not depend on numbers."""

INTRODUCTION = """# Results

This page is made from a store by one command, and so is every number on it:

```console
$ python examples/recipes/protocol-tiny/results.py --store DIR
```

## How to read it

- **World.** It is the built-in one of 232 words; only the last section has a real model. A prompt is, for example,
  `be polite : put y h e in order .`, and a program gives each answer a reward between 0 and 1: half of it for being
  right, the rest for form, brevity and civility. The teacher has 0.39 M parameters, the student 0.06 M.
- **Rows.** *Student* is fine-tuned and has seen no preferences. The other students are trained from it: *SFT* further
  on the chosen answers, the others as their names say. *Teacher* is the aligned teacher, and *Reference of the teacher*
  what it was before its DPO. *ADPA without reference* has log π_aligned in the place of the advantage
  A = log π_aligned - log π_reference.
- **Measures.** Answers to held-out prompts are drawn at temperature 0.7 (*sampled*) and greedily. Win rates, in %,
  compare sampled answers. *Reward accuracy* is the share of held-out pairs, in %, in which the chosen answer has the
  greater mean log-prob of a token. All are means ± standard deviations over the seeds; every stage is trained anew for
  each seed, the teachers included.
- **Settings.** Eight were tried for each system, with two other seeds and on the other half of the held-out prompts.
  An arrow marks the greatest (↑) or least (↓) value that was tried: a better one may lie beyond it.
- **Differences** are of mean rewards, paired by seed and prompt, with their 95 % intervals for other seeds and other
  prompts (Student's t over the seeds). The p value is for other prompts and these very models (a prompt changes
  sides in all seeds at once), corrected within each table by Holm's method. A difference counts where p is below 0.05
  and the interval excludes 0; anything else is undecided, which does not mean equal.
"""
LEAD = """In the advantage, what the aligned teacher and its reference both know cancels out. ADPA learns the rest
from its fine-tuning term alone, and ADPA+ from its first half, too. SeqKD, ATKD, DCKD and ADPA without reference
imitate all that the teacher knows. Where alignment adds more to sampled answers than to greedy ones, the aligned
teacher may be surer of its answers rather than better. This is not the only reason for what follows: with a teacher
of the student's own size, which knows no more than the student, ADPA is behind as well ([log](log.md)).
"""
FLOPS = """Each row has as many operations as ADPA+ above, whose row is the same. Captures, answers and training
count; the training of the teachers does not. More than half of what ADPA+ takes are captures and answers, which are
made once, so the budgets differ less in longer trainings.
"""
METHODS = """Each has as many steps as ADPA+. DCKD and ADPA+ are those of the table above. DCKD from the fine-tuned
reference imitates the reference of the teacher, so alignment has no part in what it reaches.
"""
CONDITIONS = """Each point has three seeds, so only large differences are decided: these are bold. All rewards are
those of sampled answers.

RMS(A) is taken over the tokens of a signal and the ids that are stored for each, the share of A < 0 likewise;
clamping is to [0, 1]. The noise of A is the RMS of what the dtype of the capture adds to it. Entropies are in nats
for each token of the students' answers, that of the student a mean over its training. A divided by its RMS has γ
0.57: this only sets γ to 0.57 / RMS(A) at each point.

The objectives of ADPA with and without reference are both linear in the student's probabilities. Without the
reference, the best id is the one that the teacher thinks most probable. With it, the best id is the one with the
greatest ratio of the two teachers, which neither needs to think probable; γ × RMS(A) says how much this counts beside
the fine-tuning term.
"""
BEYOND = """Each change has as many settings tried as ADPA+. Win rates are against ADPA+ here.
"""
REAL = """The model is SmolLM2-135M-Instruct, on pairs of short answers from AlpacaEval's annotations. Its teacher is
the same model after 16 steps of DPO, so nothing here is distilled from a larger model. Each training has 10 steps
(ADPA+ 10 + 10) with fixed settings, and the seeds are those of the training alone. The reward is the implicit one of
the teacher against its reference, in nats of a whole answer to a held-out prompt. ADPA is trained on this very
quantity, so it shows that the signal arrives, and not that answers are better. No reward model judges them. A longer
answer can have a greater sum, and answers are cut at 96 tokens: read the reward beside their length. A student with
more of it than the teacher itself has followed the advantage further than the teacher goes.
"""
KEEP = """## What to keep in mind

- A miniature shows how methods behave there. It does not show that the same holds for large models.
- The teacher has the student's task and vocabulary, so imitating it is easier than with models of people's language.
- A row with an arrow at one of its values might do better with a value that was not tried.
- ADPA+ has one rate for both of its halves, which is not the one that suits DCKD alone best; its α is what DCKD chose.
- Settings were chosen for the table at equal steps, and taken over for the one at equal FLOPs.
- Conditions have fixed settings, those chosen for ADPA+ and not tuned at each point: they show regions, not borders.
- p values are corrected within each table, not over the whole page.
"""
