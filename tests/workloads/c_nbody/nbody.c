/* Bodies under gravity; every hundredth step is written with all digits. Usage: nbody HUNDREDS OUTPUT */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { BODIES = 96 };

static double x[BODIES][3], v[BODIES][3];

int main(int argc, char **argv)
{
    if (argc != 3)
        return 64;
    int hundreds = atoi(argv[1]);
    FILE *out = fopen(argv[2], "w");
    if (!out)
        return 74;
    for (int i = 0; i < BODIES; i++)
        for (int k = 0; k < 3; k++) {
            x[i][k] = 10 * cos(1.7 * i + k);
            v[i][k] = sin(0.9 * i - k);
        }
    for (int step = 1; step <= 100 * hundreds; step++) {
        for (int i = 0; i < BODIES; i++) {
            double a[3] = {0, 0, 0};
            for (int j = 0; j < BODIES; j++) {
                double d[3] = {x[j][0] - x[i][0], x[j][1] - x[i][1], x[j][2] - x[i][2]};
                double r2 = d[0] * d[0] + d[1] * d[1] + d[2] * d[2] + 0.01;
                double f = 1 / (r2 * sqrt(r2));
                for (int k = 0; k < 3; k++)
                    a[k] += f * d[k];
            }
            for (int k = 0; k < 3; k++)
                v[i][k] += 1e-4 * a[k];
        }
        for (int i = 0; i < BODIES; i++)
            for (int k = 0; k < 3; k++)
                x[i][k] += 1e-4 * v[i][k];
        if (step % 100)
            continue;
        fprintf(out, "%d", step);
        for (int i = 0; i < BODIES; i += 16)
            fprintf(out, " %.17g %.17g %.17g", x[i][0], x[i][1], x[i][2]);
        fputc('\n', out);
        fflush(out);
    }
    return fclose(out) ? 74 : 0;
}
