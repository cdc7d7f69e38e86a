#!/usr/bin/env bash
# Makes certificates for development and tests: a CA, a site certificate, three backend certificates.
# Usage: certs/make-dev-certs.sh [--force] [DIR]     (DIR: beside this script unless given)
# What is there and valid for another week is kept; --force makes everything anew.
set -euo pipefail

readonly days=825 # the most that Apple's platforms accept
readonly week=604800
force=no
dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() { sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}"; }

for argument in "$@"; do
  case "$argument" in
    --force) force=yes ;;
    -h | --help) usage; exit 0 ;;
    -*) echo "make-dev-certs.sh: unknown option '$argument'" >&2; usage >&2; exit 2 ;;
    *) dir=$argument ;;
  esac
done
command -v openssl >/dev/null || { echo "make-dev-certs.sh: openssl is missing: apt-get install openssl" >&2; exit 1; }
umask 077
mkdir -p "$dir"

new_key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null; }

lasts() { [ -s "$1" ] && openssl x509 -in "$1" -noout -checkend "$week" >/dev/null 2>&1; }

# Whether key and certificate $1 are there, belong together and were signed by the CA of today.
good() {
  [ "$force" = no ] && [ -s "$dir/$1.key" ] && lasts "$dir/$1.crt" || return 1
  [ "$(openssl pkey -in "$dir/$1.key" -pubout 2>/dev/null)" = "$(openssl x509 -in "$dir/$1.crt" -noout -pubkey)" ] || return 1
  openssl verify -CAfile "$dir/ca.crt" "$dir/$1.crt" >/dev/null 2>&1
}

make_ca() {
  new_key "$dir/ca.key"
  openssl req -x509 -new -key "$dir/ca.key" -sha256 -days "$days" -subj "/CN=Portcullis development CA" \
    -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign" \
    -out "$dir/ca.crt"
}

# make_leaf NAME COMMON_NAME SUBJECT_ALT_NAMES
make_leaf() {
  local extensions="$dir/$1.ext"
  new_key "$dir/$1.key"
  printf '%s\n' "basicConstraints=critical,CA:FALSE" "keyUsage=critical,digitalSignature" \
    "extendedKeyUsage=serverAuth" "subjectKeyIdentifier=hash" "authorityKeyIdentifier=keyid" \
    "subjectAltName=$3" >"$extensions"
  openssl req -new -key "$dir/$1.key" -subj "/CN=$2" \
    | openssl x509 -req -sha256 -days "$days" -CA "$dir/ca.crt" -CAkey "$dir/ca.key" \
      -set_serial "0x$(openssl rand -hex 15)" -extfile "$extensions" -out "$dir/$1.crt" 2>/dev/null
  rm -f "$extensions"
}

# ensure_leaf NAME COMMON_NAME SUBJECT_ALT_NAMES
ensure_leaf() {
  if good "$1"; then echo "kept  $dir/$1.crt"; else make_leaf "$@" && echo "made  $dir/$1.crt"; fi
}

if good ca; then echo "kept  $dir/ca.crt"; else make_ca && echo "made  $dir/ca.crt"; fi
ensure_leaf site localhost "DNS:localhost,DNS:*.localhost,DNS:example.test,IP:127.0.0.1,IP:::1"
for n in 1 2 3; do
  ensure_leaf "backend-$n" "backend-$n.test" "DNS:backend-$n.test,DNS:localhost,IP:127.0.0.1,IP:::1"
done
chmod 0600 "$dir"/{ca,site,backend-1,backend-2,backend-3}.key
chmod 0644 "$dir"/{ca,site,backend-1,backend-2,backend-3}.crt
