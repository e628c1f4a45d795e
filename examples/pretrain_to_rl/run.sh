#!/usr/bin/env bash
# From text to reinforcement learning: generates a corpus, trains a tokenizer, pretrains a small Llama,
# fine-tunes it to answer in a chat, improves it with ResRL, and shows what each stage can solve.
#
#   bash examples/pretrain_to_rl/run.sh [--section.setting VALUE ...]    # settings of train.yaml
#   PYTHON=python3.12 VENV=/tmp/venv bash examples/pretrain_to_rl/run.sh
#
# Running it again keeps the environment and every stage that has finished.
set -Eeuo pipefail # E: the trap below also sees failures inside functions
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

VENV=${VENV:-.venv}
EXAMPLE=examples/pretrain_to_rl
OUTPUT=outputs/pretrain_to_rl # the recipes' paths start with it
unset PYTHONDONTWRITEBYTECODE # or each start would compile what the installation left uncompiled

# bf16 is fast only on CPUs with instructions for it; without them all stages compute in fp32.
precision=(--precision.params_dtype fp32)
grep -qsE 'amx_bf16|avx512_bf16' /proc/cpuinfo && precision=()

installation() {
    VENV=$VENV tools/install.sh quickstart,sentencepiece
}

text() {
    "$VENV/bin/python" $EXAMPLE/prepare.py --directory $OUTPUT/data --documents 100000
}

tokenizer() {
    if [[ ! -f $OUTPUT/model/config.json ]]; then
        "$VENV/bin/python" tools/train_tokenizer.py --input $OUTPUT/data/corpus.jsonl \
            --output $OUTPUT/model --kind sentencepiece --vocab_size 304 --train_bytes 2e6 \
            --chat_template $EXAMPLE/chat.jinja --eos_token '<|end|>' --special_tokens '<|user|>' \
            --force true
        cp $EXAMPLE/config.json $OUTPUT/model
    fi
}

token_files() {
    if [[ ! -f $OUTPUT/data/corpus_text_document.idx ]]; then
        "$VENV/bin/python" tools/preprocess_data.py --input $OUTPUT/data/corpus.jsonl \
            --output_prefix $OUTPUT/data/corpus --tokenizer $OUTPUT/model
    fi
}

stage() { # name command recipe [setting ...]
    local name=$1
    shift
    if [[ -f $OUTPUT/$name/hf/config.json ]]; then
        echo "$OUTPUT/$name is finished; remove it to train again"
    else
        # What the caller sets comes last, and wins.
        "$VENV/bin/python" -m megatron_resrl "$1" "$2" "${precision[@]}" "${@:3}"
    fi
}

pretraining() {
    stage pretrain pretrain $EXAMPLE/pretrain.yaml
}

pretrained_model() { # asked as in the corpus: it knows no chat
    if [[ ! -f $OUTPUT/pretrain_evaluation/evaluation.json ]]; then
        "$VENV/bin/python" -m megatron_resrl eval $EXAMPLE/train.yaml "${precision[@]}" \
            --model.path $OUTPUT/pretrain --output_dir $OUTPUT/pretrain_evaluation \
            --data.prompt_key text --data.apply_chat_template false
    fi
}

fine_tuning() {
    stage sft sft $EXAMPLE/sft.yaml
}

reinforcement_learning() {
    stage resrl train $EXAMPLE/train.yaml "$@"
}

report() {
    "$VENV/bin/python" $EXAMPLE/stages.py $OUTPUT/resrl
}

summary=
phase() { # command [argument ...]
    local began=$SECONDS
    current=$1
    echo "== ${current//_/ }"
    "$@"
    summary+=$(printf '%-24s %5d s' "${current//_/ }" $((SECONDS - began)))$'\n'
}
trap 'echo "pretrain_to_rl: stopped during \"${current//_/ }\"" >&2' ERR

phase installation
phase text
phase tokenizer
phase token_files
phase pretraining
phase pretrained_model
phase fine_tuning
phase reinforcement_learning "$@"
phase report
printf '\n%s%-24s %5d s\n' "$summary" total "$SECONDS"
