[ -x /usr/lib/wine/wine64 ] || exit 127
export WINEPREFIX=$PWD/w WINEDEBUG=-all WINEARCH=win64
/usr/lib/wine/wine64 wineboot -i >/dev/null 2>&1; echo $?
/usr/lib/wine/wine64 cmd /c 'for /L %i in (1,1,6000) do @echo %i' | sha256sum
/usr/lib/wine/wineserver64 -k 2>/dev/null || wineserver -k; echo end
