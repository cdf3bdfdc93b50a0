#!/usr/bin/env bash
# build.sh deb|rpm: makes dist/sockfuse*.deb or .rpm of the objects that are built,
# from packaging/package, for this architecture: autoattach is of one.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
project=$here/..
# shellcheck source=packaging/package
. "$here/package"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
make -s -C "$project" install DESTDIR="$root" PREFIX=/usr SYSCONFDIR=/etc
mkdir -p "$project/dist"
rm -f "$project/dist/$NAME"[-_]*."$1" # of another version

# The packages of what autoattach is linked with
libraries() {
  mkdir "$work/debian"
  printf 'Source: %s\nPackage: %s\n' "$NAME" "$NAME" >"$work/debian/control"
  (cd "$work" && dpkg-shlibdeps -O "$root/usr/lib/sockfuse/bpf/autoattach") | sed 's/^shlibs:Depends=//'
}

build_deb() {
  local architecture depends
  architecture=$(dpkg --print-architecture)
  mkdir "$root/DEBIAN"
  depends="$DEB_DEPENDS, $(libraries)"
  cat >"$root/DEBIAN/control" <<END
Package: $NAME
Version: $VERSION
Architecture: $architecture
Maintainer: $MAINTAINER
Section: $SECTION
Priority: optional
Depends: $depends
Recommends: $DEB_RECOMMENDS
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f 1)
Description: $SUMMARY
 ${DESCRIPTION//$'\n'/$'\n' }
END
  echo /etc/sockfuse.conf >"$root/DEBIAN/conffiles"
  install -m 755 "$here/post-install" "$root/DEBIAN/postinst"
  install -m 755 "$here/pre-remove" "$root/DEBIAN/prerm"
  (cd "$root" && find usr -type f -exec md5sum {} +) >"$root/DEBIAN/md5sums"
  dpkg-deb --root-owner-group --build "$root" "$project/dist/${NAME}_${VERSION}_$architecture.deb" >/dev/null
}

build_rpm() {
  cat >"$work/spec" <<END
Name: $NAME
Version: $VERSION
Release: 1
Summary: $SUMMARY
License: $LICENSE
Requires: $RPM_REQUIRES
Recommends: $RPM_RECOMMENDS
%description
$DESCRIPTION
%install
cp -a $root/. %{buildroot}
%post
$(grep -v '^#!' "$here/post-install")
%preun
$(grep -v '^#!' "$here/pre-remove")
%files
%config(noreplace) /etc/sockfuse.conf
$(cd "$root" && find usr ! -type d ! -path '*/man/*' -printf '/%p\n')
$(cd "$root" && find usr -type d -path '*sockfuse*' -printf '%%dir /%p\n')
/usr/share/man/man*/*
END
  # The objects are ELF, but for no machine of rpm's, and not to be stripped; it finds
  # what autoattach is linked with itself.
  rpmbuild --quiet -bb \
    --define "_topdir $work" --define "_rpmdir $work/rpms" --define '_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm' \
    --define 'debug_package %{nil}' --define '_build_id_links none' --define '__os_install_post %{nil}' "$work/spec"
  mv "$work"/rpms/*.rpm "$project/dist"
}

"build_$1"
