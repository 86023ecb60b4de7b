#!/usr/bin/env bash
# The whole of ADPA+ by hand: every stage prints the id of what it made, and the next one is given that id.
#
#   examples/pipeline.sh DATA TEACHER STUDENT [OPTION…]
#   examples/pipeline.sh pairs.jsonl ./models/teacher ./models/student --max-steps 4 --batch-size 8 --set max_length=512
#
# DATA is preference data. TEACHER and STUDENT are base models with one vocabulary: folders (./NAME) or hub ids.
# Options of training reach the training stages, all others every stage: so --set takes a key that all of them have
# (max_length, dtype), or one with its stage (rollout.max_new_tokens=64). Repeating the command goes on.
# The last line printed is the folder of the trained student.
set -euo pipefail

(($# >= 3)) || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
data=$1 teacher=$2 student=$3
shift 3

every=() training=()
while (($#)); do
  case $1 in
    --max-steps | --lr | --epochs | --batch-size | --seed | --tokens-per-device) training+=("${@:1:2}"); shift; shift ;;
    *) every+=("$1"); shift ;;
  esac
done
training+=(${every[@]+"${every[@]}"})

teacher_sft=$(adpa sft --model "$teacher" --data "$data" "${training[@]}")
student_sft=$(adpa sft --model "$student" --data "$data" "${training[@]}")

aligned=$(adpa dpo-teacher --reference "$teacher_sft" --data "$data" "${training[@]}")
on_pairs=$(adpa cache-teacher --teacher "$aligned" --data "$data" "${every[@]}")
dckd=$(adpa distill --method dckd --student "$student_sft" --cache "$on_pairs" --no-eval "${training[@]}")

answers=$(adpa rollout --student "$dckd" --data "$data" "${every[@]}")
on_answers=$(adpa cache-teacher --teacher "$aligned" --reference "$teacher_sft" --rollouts "$answers" "${every[@]}")
adpa=$(adpa distill --method adpa --student "$dckd" --cache "$on_answers" --no-eval "${training[@]}")

adpa path "$adpa"
