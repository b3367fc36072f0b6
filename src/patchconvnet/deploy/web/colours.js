// 256 colours each, red, green and blue: those of patchconvnet/explanation/colours.py, which a test compares.

const table = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/** matplotlib's inferno. */
export const ATTENTION = table(
  "AAADAAAEAAAGAQAHAQEJAQELAgEOAgIQAwISBAMUBAMWBQQYBgQbBwUdCAYfCQYhCgcjCwcmDQgoDggqDwktEAkvEgoyEwo0FAs2" +
  "Fgs5Fws7GQs+GgtAHAxDHQxFHwxHIAxKIgtMJAtOJgtQJwtSKQtUKwpWLQpYLgpaMApcMgldNAlfNQlgNwlhOQliOwlkPAllPglm" +
  "QAlmQQlnQwpoRQppRgppSAtqSgtqSwxrTQxrTw1sUA1sUg5sUw5tVQ9tVw9tWBBtWhFtWxFuXRJuXxJuYBNuYhRuYxRuZRVuZhVu" +
  "aBZuahduaxdubRhubhhucBluchltcxptdRttdhtteBxtehxtex1sfR1sfh5sgB9rgR9rgyBrhSBqhiFqiCFqiSJpiyJpjSNpjiRo" +
  "kCRokSVnkyVnlSZmliZmmCdlmShkmyhknCljniljoCpioSthoythpCxgpixfpy1fqS5eqy5drC9crjBbrzFbsTFasjJZtDNYtTNX" +
  "tzRWuDVWujZVuzdUvTdTvjhSvzlRwTpQwjtPxDxOxT1Nxz5MyD5LyT9Ky0BJzEFIzUJHz0RG0EVE0UZD0kdC1EhB1UlA1ko/10s+" +
  "2U092k4720863FA53VI43lM331Q24FY04lcz41gy5Fox5Vsw5lwu5l4t518s6GEr6WIq6mQo62Un7Gcm7Wgl7Woj7mwi720h8G8f" +
  "8HAe8XId8nQc8nUa83cZ83kY9HoW9XwV9X4U9oAS9oER94MQ94UO+IcN+IgM+IoL+YwJ+Y4I+ZAI+pEH+pMG+pUG+pcG+5kG+5sG" +
  "+50G+54H+6AH+6II+6QK+6YL+6gN+6oO+6wQ+64S+7AU+7EW+7MY+7Ua+7cc+7ke+rsh+r0j+r8l+sEo+cMq+cUs+ccv+Mkx+Ms0" +
  "+M03988699E89tM/9tVC9ddF9dlI9NtL9NxP895S8+BW8+JZ8uRd8uZg8ehk8elo8ets8e1w8e508fB58fJ98vOB8vSF8/aJ9PeN" +
  "9fiR9vqV9/uZ+fyd+v2g/P6k",
);

/** ColorBrewer's red to blue without its ends: blue is against, red is for. */
export const EVIDENCE = table(
  "GlqbHFyeHV6hHmCkHmCkH2KnIGSqIWasI2itJGquJGquJWyvJ22wKG+wKXGxK3OyK3OyLHWzLXa0L3i1MHq2MXy3M324M324NH+5" +
  "NYG5N4O6OIS7OYa8OYa8O4i9PIq+PYu/P43AQI/BQI/BQZHCQ5PDRpTESZbFTJjGT5rHT5rHUpzIVZ7JWKDKW6LLXqTMXqTMYabN" +
  "ZajOaKrPa6zQbq7RcbDScbDSdLLTd7TVerbWfbjXgLrYgLrYhLzZh77aisDbjcLckMTdkMTdk8XelcbfmMjfmsngncrhn8vhn8vh" +
  "os3ipM7jp8/kqdDkq9Llq9LlrtPmsNTms9XntdfouNjoutnputnpvdrqv9zrwt3rxN7sx9/tx9/tyeHtzOLuzuPv0eXw0uXw0uXw" +
  "0+bw1efw1ufx2Ojx2enx2+nx2+nx3Ory3uvy3+zy4ezz4u3z4u3z5O7z5e7z5+/06PD06vH06vH06/H07fL17vP18PP18fT28/X2" +
  "8/X29PX29vb29/b29/X09/Ty9/Ty9/Pw+PLu+PDs+O/q+O7o+e3n+e3n+ezl+evj+erh+enf+ujd+ujd+ufb+uXZ+uTX++PW++LU" +
  "++LU++HS++DQ/N/O/N7M/N3K/NzI/NzI/dvH/NjE/NbB+9S++9K8+9K8+9C5+s62+sy0+sqx+ceu+ceu+cWr+cOp+MGm+L+j+L2h" +
  "97ue97ue97mb97eZ9rSW9rKT9bCQ9bCQ9a6O9ayL9KqI9KiG9KaD86OA86OA8qB+8Z5875t67ph47ZZ27ZZ27JN065By6o5w6Itu" +
  "54hs54hs5oVq5YNo5IBl4n1j4Xth4Hhf4Hhf33Vd3nJb3XBZ221X2mpV2mpV2WhT2GVR12JP1mBN1F1L01pK01pK0VdJ0FRHzlFG" +
  "zU9FzExDzExDyklCyUZBx0M/xkA+xT49xT49wzs7wjg6wDU5vzI3vjA2vC01vC01uyozuScyuCQxtiEvtR8utR8utBwtshkrsBcq" +
  "rRYqqhUpqhUppxQppBMooRIo",
);
