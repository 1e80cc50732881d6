# Sourced by demo.sh and test.sh: makes .venv beside the checkout and installs into it.
# Usage: prepare_environment EXTRAS     ("" or "[test]"); PYTHON=python3.12 picks another.
prepare_environment() {
  local extras="$1" venv="${VENV:-.venv}" stamp
  stamp="$venv/.installed$(cat setup.cfg requirements.txt | cksum | tr -d ' ')$extras"
  if [ ! -e "$stamp" ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2
      return 1
    }
    echo "Installing into $venv (a few minutes the first time) ..."
    [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".$extras"
    touch "$stamp"
  fi
  # shellcheck disable=SC1091
  . "$venv/bin/activate"
}

# As in experiments/program.py: training on the CPU keeps its memory, in huge pages.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-100000000000}"
export MALLOC_TOP_PAD_="${MALLOC_TOP_PAD_:-1000000000}"
