#!/bin/bash
# tests/soak.sh DROVER SOURCE_DIR PART... : make soak. The parts are kill, hang, layout and slow; all are done, whatever fails.
drover=$(realpath "$1") source=$(realpath "$2") failed=0
cd "$(dirname "$0")" || exit 1
shift 2
for part; do
  case $part in
    kill) ./kill_ranks_test.sh "$drover" "$source" 200 ;;
    hang) ./hang_ranks_test.sh "$drover" "$source" 100 ;;
    layout) ./any_layout_test.sh "$drover" "$source" 200 ;;
    slow) ./clean_steps_test.sh "$drover" "$source" 10000 ;;
    *) echo "there is no part '$part' (kill, hang, layout, slow)" && false ;;
  esac || failed=1
done
exit $failed
