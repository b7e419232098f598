"""What JetPack puts on a board to set its power: the power modes, and the two programs that set them.

``nvpmodel`` and ``jetson_clocks`` are small shell scripts written here from their documented command
lines. They are shell and not Python because the jtop service runs ``nvpmodel -q`` for every sample. They
keep their state in files, so that what one process sets the next one reads; neither changes how fast the
board computes or what it draws.
"""

from __future__ import annotations

from testbed.boards.model import Board

__all__ = ["JETSON_CLOCKS", "NVPMODEL", "REBOOT", "nvpmodel_conf", "nvpmodel_status"]


def nvpmodel_conf(board: Board) -> str:
    """Return ``/etc/nvpmodel.conf``."""
    lines = ["# Power modes of an emulated board.", ""]
    for mode in board.modes:
        lines.append(f"< POWER_MODEL ID={mode.id} NAME={mode.name} >")
        lines += [f"CPU_ONLINE CORE_{core} {int(core < mode.cpus)}" for core in range(board.cpus)]
        lines += [
            f"TPC_POWER_GATING TPC_PG_MASK {mode.tpc_pg_mask}",
            f"CPU MAX_FREQ {mode.cpu_mhz * 1000}",
            f"GPU MAX_FREQ {mode.gpu_mhz * 1_000_000}",
            "",
        ]
    lines.append(f"< PM_CONFIG DEFAULT={board.start_mode} >")
    return "\n".join(lines) + "\n"


def nvpmodel_status(board: Board) -> str:
    """Return ``/var/lib/nvpmodel/status`` of a board that has just started."""
    return f"pmode:{board.start_mode:04d} {board.start_mode} {board.mode(board.start_mode).name}\n"


NVPMODEL = r"""#!/bin/sh
# Emulated nvpmodel: the command line of NVIDIA's, with the mode kept in a file.
conf=/etc/nvpmodel.conf
state=/var/lib/nvpmodel/status

usage() {
    echo "Usage: nvpmodel [-h] [-f FILE] [-p] [-q] [-m ID] [--verbose]"
    echo "  -h  this text      -f  another configuration file   -p  show the configuration"
    echo "  -q  show the mode  -m  set the mode                 --verbose  say more"
}

fail() {
    echo "NVPM ERROR: $1" >&2
    exit "${2:-255}"
}

say() { [ -z "$verbose" ] || echo "NVPM VERB: $1"; }

# Sets number, name, mask, cpu and gpu of the mode $1.
find_mode() {
    number= name= mask= cpu= gpu= inside=
    while read -r word first second _; do
        case "$word $first" in
            "< POWER_MODEL")
                inside=
                [ "$second" = "ID=$1" ] && inside=1 && number=$1
                ;;
            "< PM_CONFIG") inside= ;;
        esac
        [ -n "$inside" ] || continue
        case "$word $first" in
            "TPC_POWER_GATING TPC_PG_MASK") mask=$second ;;
            "CPU MAX_FREQ") cpu=$second ;;
            "GPU MAX_FREQ") gpu=$second ;;
        esac
    done <"$conf"
    name=$(sed -n "s/^< POWER_MODEL ID=$1 NAME=\([^ ]*\) >.*/\1/p" "$conf")
    [ -n "$number" ]
}

show_conf() {
    while read -r word first second third _; do
        case "$word $first" in
            "< POWER_MODEL") echo "NVPM VERB: POWER_MODEL: $second $third" ;;
            "< PM_CONFIG")
                id=${second#DEFAULT=}
                text=$(sed -n "s/^< POWER_MODEL ID=$id NAME=\([^ ]*\) >.*/\1/p" "$conf")
                echo "NVPM VERB: PM_CONFIG: DEFAULT=$text($id)"
                ;;
            "# "* | " ") ;;
            *) echo "NVPM VERB: $word $first $second" ;;
        esac
    done <"$conf"
}

query() {
    read -r _ id name <"$state" || fail "cannot read $state"
    say "Current mode: NV Power Mode: $name"
    echo "NV Power Mode: $name"
    echo "$id"
}

set_mode() {
    case "$1" in '' | *[!0-9]*) fail "invalid power mode: $1" ;; esac
    [ "$(id -u)" = 0 ] || fail "Run nvpmodel with root privileges"
    read -r _ current _ <"$state" || fail "cannot read $state"
    find_mode "$current" || fail "mode $current is not in $conf"
    before=$mask
    find_mode "$1" || fail "power mode $1 is not in $conf"
    reboot=
    if [ "$mask" != "$before" ]; then
        echo "NVPM WARN: Reboot required for changing to this power mode: $1"
        echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
        read -r answer || answer=
        case "$answer" in
            YES | yes) reboot=1 ;;
            *) fail "the power mode is not changed: a reboot was not confirmed" 1 ;;
        esac
    fi
    printf 'pmode:%04d %d %s\n' "$1" "$1" "$name" >"$state.part" && mv "$state.part" "$state" ||
        fail "cannot write $state"
    for file in /sys/devices/system/cpu/cpu*/cpufreq/scaling_max_freq; do echo "$cpu" >"$file"; done
    for file in /sys/class/devfreq/*/max_freq; do echo "$gpu" >"$file"; done
    for file in /sys/class/devfreq/*/device/tpc_pg_mask; do echo "$mask" >"$file"; done
    say "Power mode set to $name"
    [ -z "$reboot" ] || reboot
}

verbose= action= mode=
while [ $# -gt 0 ]; do
    case "$1" in
        --verbose | -v) verbose=1 ;;
        -q | --query) action=query ;;
        -p | --parse) action=show_conf ;;
        -m | --mode) action=set_mode mode=$2; [ $# -gt 1 ] && shift ;;
        -f | --conf) conf=$2; [ $# -gt 1 ] && shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; fail "unknown option: $1" ;;
    esac
    shift
done
[ -r "$conf" ] || fail "cannot read $conf"
case "$action" in
    query) query ;;
    show_conf) show_conf ;;
    set_mode) set_mode "$mode" ;;
    *) usage >&2; exit 255 ;;
esac
"""

JETSON_CLOCKS = r"""#!/bin/sh
# Emulated jetson_clocks: the command line of NVIDIA's, over the board's synthetic sysfs.
cpus=/sys/devices/system/cpu
emc=/sys/kernel/debug/bpmp/debug/clk/emc
file=${HOME:-/root}/l4t_dfs.conf

usage() {
    echo "Usage: jetson_clocks [--show] [--store [FILE]] [--restore [FILE]] [--fan]"
    echo "  without an option: all clocks at their greatest"
}

settings() {
    ls $cpus/cpu*/cpufreq/scaling_min_freq $cpus/cpu*/cpufreq/scaling_max_freq $cpus/cpu*/cpufreq/scaling_cur_freq \
        /sys/class/devfreq/*/min_freq /sys/class/devfreq/*/max_freq /sys/class/devfreq/*/cur_freq \
        $emc/rate $emc/mrq_rate_locked
}

show() {
    echo "SOC family:tegra  Machine:$(tr -d '\0' </sys/firmware/devicetree/base/model)"
    echo "Online CPUs: $(cat $cpus/online)"
    for cpu in $cpus/cpu[0-9]*; do
        echo "${cpu##*/}: Online=$(cat "$cpu/online") Governor=$(cat "$cpu/cpufreq/scaling_governor")" \
            "MinFreq=$(cat "$cpu/cpufreq/scaling_min_freq") MaxFreq=$(cat "$cpu/cpufreq/scaling_max_freq")" \
            "CurrentFreq=$(cat "$cpu/cpufreq/scaling_cur_freq")"
    done
    for gpu in /sys/class/devfreq/*; do
        echo "GPU MinFreq=$(cat "$gpu/min_freq") MaxFreq=$(cat "$gpu/max_freq") CurrentFreq=$(cat "$gpu/cur_freq")"
    done
    echo "EMC MinFreq=$(cat $emc/min_rate) MaxFreq=$(cat $emc/max_rate) CurrentFreq=$(cat $emc/rate)" \
        "FreqOverride=$(cat $emc/mrq_rate_locked)"
    nvpmodel -q 2>/dev/null | sed -n 1p
}

root() {
    [ "$(id -u)" = 0 ] || { echo "Error: root privileges are needed" >&2; exit 1; }
}

store() {
    root
    if [ -e "$file" ]; then
        echo "File $file already exists. Can I overwrite it? Y/N:"
        read -r answer || answer=N
        case "$answer" in Y | y) ;; *) echo "Error: $file is left as it is" >&2; exit 1 ;; esac
    fi
    settings | while read -r path; do echo "$path:$(cat "$path")"; done >"$file.part" && mv "$file.part" "$file"
    echo "Settings stored in $file"
}

restore() {
    root
    [ -r "$file" ] || { echo "Error: $file not found: run jetson_clocks --store first" >&2; exit 1; }
    while IFS=: read -r path value; do echo "$value" >"$path"; done <"$file"
}

maximise() {
    root
    for cpu in $cpus/cpu*/cpufreq; do
        cat "$cpu/scaling_max_freq" >"$cpu/scaling_min_freq"
        cat "$cpu/scaling_max_freq" >"$cpu/scaling_cur_freq"
    done
    for gpu in /sys/class/devfreq/*; do
        cat "$gpu/max_freq" >"$gpu/min_freq"
        cat "$gpu/max_freq" >"$gpu/cur_freq"
    done
    cat $emc/max_rate >$emc/rate
    echo 1 >$emc/mrq_rate_locked
}

case "${1:-}" in
    --show) show ;;
    --store) [ -z "${2:-}" ] || file=$2; store ;;
    --restore) [ -z "${2:-}" ] || file=$2; restore ;;
    --fan) root; echo 255 >/sys/devices/platform/pwm-fan/hwmon/hwmon9/pwm1 ;;
    '') maximise ;;
    -h | --help) usage ;;
    *) usage >&2; echo "Error: unknown option $1" >&2; exit 1 ;;
esac
"""

REBOOT = r"""#!/bin/sh
# reboot, shutdown and poweroff where process 1 is no systemd but the lab's supervisor: that takes SIGINT for a
# reboot, as a kernel's Ctrl-Alt-Del does, and SIGTERM for the end.
number=TERM
case "${0##*/} $*" in reboot* | shutdown*" -r"*) number=INT ;; esac
[ "$(id -u)" = 0 ] || { echo "${0##*/}: must be root" >&2; exit 1; }
kill -s $number 1
"""
