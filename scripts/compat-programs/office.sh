command -v soffice >/dev/null && command -v unzip >/dev/null || exit 127
python3 -c "
for i in range(4000): print(','.join(str((i*k)%97) for k in range(1,12)))" > a.csv
for k in 1 2 3; do soffice -env:UserInstallation=file://$PWD/prof --headless --convert-to ods a.csv >l 2>&1; echo $?; soffice -env:UserInstallation=file://$PWD/prof --headless --convert-to txt:Text a.csv >l 2>&1; done; unzip -p a.ods content.xml | grep -o 'office:value="[0-9]*"' | md5sum
