# Sourced by the scripts beside it: installs what is missing and says so. Needs Debian or Ubuntu, Python 3.11+
# and root or sudo for the Debian packages.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${TESTBED_VENV:-$ROOT/.venv}"
cd "$ROOT"

say() { printf '==> %s\n' "$*" >&2; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    say "root is needed for: $*"
    say "run this as root, or install sudo"
    exit 3
  fi
}

# need_packages COMMAND=PACKAGE ...: install the Debian packages whose command is not on the path.
need_packages() {
  local missing=() pair
  for pair in "$@"; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
  done
  [ ${#missing[@]} -eq 0 ] && return
  if ! command -v apt-get >/dev/null; then
    say "these Debian packages (or what they are called here) are missing: ${missing[*]}"
    exit 1
  fi
  say "installing Debian packages: ${missing[*]}"
  # A package such as openssh-server would start its service; the lab runs its own sshd, so none is wanted.
  # In a shell of its own, whose trap takes the policy away again however the installation ends.
  (
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
      trap 'as_root rm -f "$policy"' EXIT
      printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
      as_root chmod 755 "$policy"
    fi
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  )
}

find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  say "Python 3.11 or newer is needed: apt-get install python3 python3-venv"
  exit 1
}

# The environment is made again only when a dependency has changed.
need_environment() {
  local wanted stamp="$VENV/.testbed-stamp" python
  wanted="$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-64) $ROOT"
  [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
  python="$(find_python)"
  if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    need_packages "no-ensurepip=$("$python" -c 'import sys; print("python3.%d-venv" % sys.version_info[1])')"
  fi
  say "making the Python environment in $VENV (a few minutes the first time)"
  [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
  "$VENV/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
  echo "$wanted" >"$stamp"
}

# What labs with ordinary users, systemd and clocks that are off need besides.
RACK_PACKAGES=(sudo=sudo faketime=faketime openssl=openssl systemctl=systemd dbus-daemon=dbus)
LAB_PACKAGES=(sshd=openssh-server ssh=openssh-client ip=iproute2 nc=netcat-openbsd nsenter=util-linux ps=procps)

# Debian has Chromium and its driver as packages. Ubuntu has not; its CI runners come with Chrome and the driver.
need_browser() {
  if command -v chromedriver >/dev/null && { command -v chromium || command -v google-chrome; } >/dev/null; then
    return
  fi
  apt-cache show chromium-driver >/dev/null 2>&1 || as_root apt-get update -qq
  if apt-cache show chromium-driver >/dev/null 2>&1; then
    need_packages chromium=chromium chromedriver=chromium-driver
  else
    say "no Chromium by Debian package here: the browser tests are skipped"
  fi
}

# Debian's stock kernel as a program (41 MB to fetch, 120 MB on disk): it has the modules that this machine's kernel may
# lack. There is one for amd64 alone; without it its tests are skipped.
need_stock_kernel() {
  command -v linux.uml >/dev/null && return
  apt-cache show user-mode-linux >/dev/null 2>&1 || as_root apt-get update -qq || say "the package lists could not be refreshed"
  if apt-cache show user-mode-linux >/dev/null 2>&1; then
    need_packages linux.uml=user-mode-linux || say "user-mode-linux could not be installed: its tests are skipped"
  else
    say "no package user-mode-linux here: the tests under a stock kernel are skipped"
  fi
}

# What runs the tests of the device code under the Pythons of boards: a few packages, pure Python, in one folder for all.
need_board_packages() {
  local list=tests/payloads/requirements.txt folder=.cache/board-tests
  cmp -s "$list" "$folder/requirements.txt" && return
  rm -rf "$folder"
  mkdir -p "$folder"
  if "$VENV/bin/pip" install --quiet --disable-pip-version-check --no-compile --no-deps --only-binary=:all: \
    --python-version 3.8 --implementation py --abi none --platform any --target "$folder" -r "$list"; then
    cp "$list" "$folder/"
  else
    say "the packages of $list could not be installed: the tests of the device code run under this Python alone"
    rm -rf "$folder"
  fi
}
